package volume

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// StartAcceptTail starts the task that lets a volume go on with a copy that may lack
// what was acknowledged, while no copy answers that could tell; dryRun: says what
// that may cost. It is refused unless the volume is open and waits for this word.
func (s *Service) StartAcceptTail(ctx context.Context, ref string, dryRun bool) (*model.Task, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	lines, err := s.tail(ctx, v, false)
	if err != nil {
		return nil, err
	}
	action := "volume accept-tail " + v.Name
	if dryRun {
		return api.DryRun(action, "would go on with copies that may lack what was acknowledged", lines...), nil
	}
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		lines, err := s.tail(ctx, v, true)
		if err != nil {
			return "", err
		}
		s.env.Events.Emit("error", "volume "+v.Name, "an operator goes on with what there is: "+strings.Join(lines, "; "))
		return "volume " + v.Name + " goes on: " + strings.Join(lines, "; "), nil
	})
}

// tail asks whoever has the volume open, and says a line for each copy in doubt.
func (s *Service) tail(ctx context.Context, v *model.Volume, accept bool) ([]string, error) {
	w, err := s.WriterOf(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	var t volumectl.Tail
	switch {
	case !w.Open:
		return nil, errs.New(errs.Conflict, "accept the tail of volume %s: nobody has it open", v.Name).
			WithHint("start its VM, or `roseau volume serve %s`: whoever opens it finds out what its copies lack", v.Name)
	case w.Held:
		path := fmt.Sprintf("/v1/nodes/%s/vms/%s/accept-tail", w.Node, w.VM)
		err = s.env.Ask(ctx, w.Node, http.MethodPost, path, volumectl.TailRequest{Volume: v.ID, Accept: accept}, &t)
	case w.Node == s.env.Node:
		t, err = s.writers.Tail(ctx, v.ID, accept)
	default:
		err = s.env.Ask(ctx, w.Node, http.MethodPost, writerPath(w.Node, v.ID)+"/accept-tail", volumectl.TailRequest{Accept: accept}, &t)
	}
	if err != nil {
		return nil, err
	}
	names, _, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	return doubtLines(t.Doubts, names), nil
}

// doubtLines says what going on with each copy may cost, and who could still tell.
func doubtLines(doubts []volumectl.Doubt, names records.Names) []string {
	where := func(d ids.ID) string {
		return fmt.Sprintf("%s on %s", names.DiskName(d), names.NodeName(names.DiskNode[d]))
	}
	var lines []string
	for _, d := range doubts {
		may := fmt.Sprintf("up to %d of its last records are torn: those of them that were acknowledged are lost", d.Unverified)
		if d.Damaged {
			may = "a durable part of its log is lost: writes may be missing that were acknowledged and flushed, and nobody can name them"
		}
		line := fmt.Sprintf("%d segments of 1 GiB: %s: %s", d.Segments, where(d.Disk), may)
		if d.Segments == 1 {
			line = strings.Replace(line, "segments", "segment", 1)
		}
		if len(d.Missing) > 0 {
			var list []string
			for _, m := range d.Missing {
				list = append(list, where(m))
			}
			line += "; the copies that could tell: " + strings.Join(list, ", ")
		}
		lines = append(lines, line)
	}
	return lines
}
