package care

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// ScrubRequest is the body of POST /v1/pools/{ref}/scrub.
type ScrubRequest struct {
	Stop        bool `json:"stop,omitempty" doc:"stop where it is; nothing is scrubbed until the next start"`
	DutyPercent int  `json:"duty_percent,omitempty" doc:"share of the disks' time, 1 to 100; default 5"`
	EveryDays   int  `json:"every_days,omitempty" doc:"length of the cycle from now on, 7 to 30; default: as before"`
}

// ScrubInfo is the answer of GET /v1/pools/{ref}/scrub.
type ScrubInfo struct {
	Pool string `json:"pool"`
	records.PoolScrub
	Next    time.Time     `json:"next,omitzero"` // when the next cycle begins by itself; zero: paused, or it runs
	Disks   []DiskScrub   `json:"disks"`
	Volumes []VolumeScrub `json:"volumes"`
}

// DiskScrub is the pass over a disk.
type DiskScrub struct {
	Disk        string    `json:"disk"`
	State       string    `json:"state"` // running, done, waiting, or the state of a disk that does not serve
	Done        int       `json:"done"`  // extents
	Total       int       `json:"total"`
	Ended       time.Time `json:"ended,omitzero"`
	BadBlocks   int       `json:"bad_blocks"`
	BadMetadata int       `json:"bad_metadata"`
	Damaged     int       `json:"damaged"` // not repaired yet
}

// VolumeScrub is the comparison of a volume's copies.
type VolumeScrub struct {
	Volume string `json:"volume"`
	records.VolumeScrub
}

func (s *Service) scrubRoutes(r *api.Router) {
	huma.Register(r, api.Op("get-pool-scrub", "GET", "/v1/pools/{ref}/scrub", "Show the scrub of a pool"), func(ctx context.Context, in *api.Ref) (*api.Body[*ScrubInfo], error) {
		return api.OK(s.Info(ctx, in.Ref))
	})
	huma.Register(r, api.Op("scrub-pool", "POST", "/v1/pools/{ref}/scrub", "Start or stop the scrub of a pool"), func(ctx context.Context, in *struct {
		api.Ref
		Body ScrubRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Order(ctx, in.Ref.Ref, in.Body))
	})
}

// Info tells how the scrub of a pool goes on.
func (s *Service) Info(ctx context.Context, ref string) (*ScrubInfo, error) {
	p, err := store.Get[model.Pool](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return nil, err
	}
	rec, err := store.GetRecord[records.PoolScrub](ctx, s.env.Store.Relaxed(), records.PoolScrubKey(p.ID))
	if err != nil {
		return nil, err
	}
	out := &ScrubInfo{Pool: p.Name, PoolScrub: rec.Value, Disks: []DiskScrub{}, Volumes: []VolumeScrub{}}
	if !out.Running && !out.Paused && rec.Revision != 0 {
		out.Next = out.Ended.Add(out.Every())
	}
	disks, err := store.List[model.Disk](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	reports, err := s.gather(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if d.Spec.Pool != p.ID {
			continue
		}
		r, known := reports[d.ID]
		ds := DiskScrub{Disk: d.Name, Done: r.Scrub.Extents, Total: r.Scrub.Total, Ended: r.Scrub.Ended, BadBlocks: r.Scrub.BadBlocks, BadMetadata: r.Scrub.BadMetadata}
		for _, m := range r.Damage {
			ds.Damaged += m.Blocks
		}
		switch {
		case !d.Status.State.Serving():
			ds.State = string(d.Status.State)
		case !known:
			ds.State = "not asked: its node does not answer"
		case r.Scrub.Running:
			ds.State = "running"
		case out.Running && !r.Scrub.Ended.After(out.Started):
			ds.State = "waiting"
		case r.Scrub.Ended.IsZero():
			ds.State = "never scrubbed"
		default:
			ds.State = "done"
		}
		out.Disks = append(out.Disks, ds)
	}
	return out, s.volumeScrubs(ctx, p, out)
}

func (s *Service) volumeScrubs(ctx context.Context, p *model.Pool, out *ScrubInfo) error {
	vols, err := store.List[model.Volume](ctx, s.env.Store.Relaxed())
	if err != nil {
		return err
	}
	recs, err := store.ListRecords[records.VolumeScrub](ctx, s.env.Store.Relaxed(), records.VolumeScrubPrefix)
	if err != nil {
		return err
	}
	for _, v := range vols {
		if v.Spec.Pool == p.Name {
			out.Volumes = append(out.Volumes, VolumeScrub{v.Name, recs[records.VolumeScrubKey(v.ID)].Value})
		}
	}
	return nil
}

// Order starts or stops the scrub of a pool. The task follows it; the scrub goes
// on without it.
func (s *Service) Order(ctx context.Context, ref string, req ScrubRequest) (*model.Task, error) {
	p, err := store.Get[model.Pool](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	if req.DutyPercent < 0 || req.DutyPercent > 100 {
		return nil, errs.New(errs.Invalid, "scrub pool %s: duty_percent is %d, want 1 to 100", p.Name, req.DutyPercent).WithHint("5 is the default; 100 reads as fast as the disks can")
	}
	if d := req.EveryDays; d != 0 && (d < records.ScrubDaysMin || d > records.ScrubDaysMax) {
		return nil, errs.New(errs.Invalid, "scrub pool %s: every_days is %d, want %d to %d", p.Name, d, records.ScrubDaysMin, records.ScrubDaysMax).
			WithHint("more often wears the disks, more seldom lets two copies rot before one is found")
	}
	verb := "start"
	if req.Stop {
		verb = "stop"
	}
	return s.env.Tasks.Start(ctx, "pool scrub "+verb+" "+p.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		ps, err := s.order(ctx, p, req)
		if err != nil {
			return "", err
		}
		if req.Stop {
			return "the scrub of pool " + p.Name + " is stopped; nothing is scrubbed until `roseau pool scrub start`", nil
		}
		return s.follow(ctx, h, p, ps.Started)
	})
}

// order writes what is wanted.
func (s *Service) order(ctx context.Context, p *model.Pool, req ScrubRequest) (records.PoolScrub, error) {
	key := records.PoolScrubKey(p.ID)
	for {
		rec, err := store.GetRecord[records.PoolScrub](ctx, s.env.Store, key)
		if err != nil {
			return rec.Value, err
		}
		ps := rec.Value
		if req.EveryDays != 0 {
			ps.EveryDays = req.EveryDays
		}
		switch {
		case req.Stop:
			ps.Running, ps.Paused = false, true
		default:
			if ps.DutyPercent = req.DutyPercent; ps.DutyPercent == 0 {
				ps.DutyPercent = 5
			}
			if !ps.Running { // a running one takes the new duty
				ps.Started = s.env.Clock.Wall().UTC()
			}
			ps.Running, ps.Paused = true, false
		}
		_, err = s.env.Store.Commit(ctx, store.NewTx().If(key, rec.Revision).Put(key, ps))
		if !errors.Is(err, errs.Conflict) {
			return ps, err
		}
	}
}

// follow shows the progress until the scrub that began at started has ended.
func (s *Service) follow(ctx context.Context, h *task.Handle, p *model.Pool, started time.Time) (string, error) {
	var result string
	err := svc.WaitFor(ctx, time.Second, func(ctx context.Context) (bool, error) {
		i, err := s.Info(ctx, p.Name)
		if err != nil {
			if errors.Is(err, errs.NotFound) {
				return false, err
			}
			return false, nil // a node or etcd is away: the scrub waits, too
		}
		if !i.Running {
			if i.Paused {
				return false, errs.New(errs.Conflict, "scrub pool %s: it was stopped", p.Name).WithHint("`roseau pool scrub start %s` goes on where it was", p.Name)
			}
			if i.Ended.Before(started) {
				return false, nil
			}
			result = fmt.Sprintf("pool %s scrubbed in %s: %s", p.Name, i.Ended.Sub(i.Started).Round(time.Second), Findings(i.PoolScrub))
			return true, nil
		}
		done, total, left := 0, 0, 0
		for _, d := range i.Disks {
			if d.State == "running" || d.State == "waiting" {
				left++
			}
			done, total = done+min(d.Done, d.Total), total+d.Total
			if d.State == "waiting" {
				done -= min(d.Done, d.Total)
			}
		}
		compared := 0
		for _, v := range i.Volumes {
			if v.Ended.After(i.Started) {
				compared++
			}
		}
		if left > 0 {
			h.Phase("reads %d disks, compares volume %d of %d", left, min(compared+1, len(i.Volumes)), len(i.Volumes))
		} else {
			h.Phase("compares volume %d of %d", min(compared+1, len(i.Volumes)), len(i.Volumes))
		}
		h.Progress(int64(done+compared), int64(total+len(i.Volumes)), "items")
		return false, nil
	})
	return result, err
}
