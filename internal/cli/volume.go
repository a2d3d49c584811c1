package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/svc/volume"
)

func newVolumeCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Volumes: mirrored block devices of a pool"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List volumes", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var vs []volume.Info
			return a.get(cmd, "/v1/volumes", &vs, func() *table { return volumeTable(vs) })
		}},
		&cobra.Command{Use: "show VOLUME", Short: "Show a volume and its copies", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			v := new(volume.Info)
			return a.get(cmd, "/v1/volumes/"+url.PathEscape(args[0]), v, func() *table { return volumeSheet(v) })
		}},
		newVolumeCreateCmd(a),
		destroys(&cobra.Command{Use: "delete VOLUME", Short: "Delete a volume that is nobody's", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/v1/volumes/"+url.PathEscape(args[0]), "volume "+args[0])
		}}),
		newVolumeServeCmd(a),
		newVolumeSnapshotCmd(a),
		newVolumeForceCmd(a),
		newVolumeAcceptTailCmd(a),
		newVolumeCloneCmd(a),
		&cobra.Command{Use: "unserve VOLUME", Short: "Release a volume that is served", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, "/v1/volumes/"+url.PathEscape(args[0])+"/writer", nil, nil, func() string { return "volume " + args[0] + " released" })
		}},
	)
	return cmd
}

func newVolumeCreateCmd(a *app) *cobra.Command {
	var req volume.CreateRequest
	var bytes string
	cmd := &cobra.Command{Use: "create NAME --size SIZE", Short: "Create a volume", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var err error
		req.Name = args[0]
		if req.Size, err = size.Parse(bytes); err != nil {
			return err
		}
		return a.change(cmd, http.MethodPost, "/v1/volumes", req, nil, nil)
	}}
	cmd.Flags().StringVar(&bytes, "size", "", "size, for example 8GiB")
	cmd.Flags().StringVar(&req.Pool, "pool", "", "pool (default: the only one)")
	cobra.MarkFlagRequired(cmd.Flags(), "size")
	return cmd
}

func newVolumeServeCmd(a *app) *cobra.Command {
	var node string
	var req volume.WriterRequest
	cmd := &cobra.Command{Use: "serve VOLUME", Short: "Serve a volume as an NBD export on a unix socket of a node", Args: cobra.ExactArgs(1),
		Long: "Serve a volume that no VM uses. The socket is on the node that is asked (or --node); it stays until `roseau volume unserve`.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Socket != "" {
				abs, err := filepath.Abs(req.Socket)
				if err != nil {
					return errs.New(errs.Invalid, "flag --socket: %w", err)
				}
				req.Socket = abs
			}
			req.Purpose = repl.PurposeServe
			where, err := a.nodeOrSelf(cmd, node)
			if err != nil {
				return err
			}
			st := new(volumectl.Status)
			path := "/v1/nodes/" + url.PathEscape(where) + "/writers/" + url.PathEscape(args[0])
			return a.change(cmd, http.MethodPost, path, req, st, func() string { return st.Socket })
		}}
	cmd.Flags().StringVar(&req.Socket, "socket", "", "path of the socket (default: in the node's run directory)")
	cmd.Flags().StringVar(&node, "node", "", "node that serves it (default: the one that is asked)")
	cmd.Flags().StringVar(&req.Snapshot, "snapshot", "", "serve the content of this snapshot, read-only")
	return cmd
}

func newVolumeForceCmd(a *app) *cobra.Command {
	req := new(volume.ForceRequest)
	cmd := &cobra.Command{Use: "force VOLUME", Short: "Go on without in-sync copies that are gone for good", Args: cobra.ExactArgs(1),
		Long: "The last resort: where no in-sync copy of a volume can be reached any more, a copy that is older becomes the truth, and what was written since is lost. " +
			"It says first what that is (--dry-run: and nothing else). It is refused as long as an in-sync copy can be reached, and while the volume is in use: stop its VM first.\n\n" +
			"Be sure that the copies given up do not serve a VM somewhere out of sight: nothing is waited for. Should they return, they are left alone and never mixed with " +
			"what is written from now on; to use such a disk for this volume again, release it, wipe it and claim it anew."}
	cmd.Flags().StringArrayVar(&req.From, "from", nil, "disk whose copy becomes the truth; repeat for more (default: the one that has most)")
	return volumeLoss(a, cmd, "force", req, "what only the missing copies have is lost")
}

func newVolumeAcceptTailCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "accept-tail VOLUME", Short: "Go on with a copy that may lack its last writes, where no other answers", Args: cobra.ExactArgs(1),
		Long: "After a power cut the last records of a copy's log may be torn, or its disk may have lost a part of the log. What that costs another in-sync copy can tell, so a volume waits " +
			"until one answers. If none will, this lets it go on: what the copy lacks is lost, although it may have been acknowledged. It says first what that can be (--dry-run: and nothing else), and " +
			"is refused unless the volume is open and waits for nothing else.\n\n" +
			"Bring the other copies' nodes and disks back if you can: then nothing has to be accepted."}
	return volumeLoss(a, cmd, "accept-tail", nil, "what the copies that answer lack is lost")
}

// volumeLoss makes a command that may lose what was acknowledged: it says what, then
// asks for the volume's name again.
func volumeLoss(a *app, cmd *cobra.Command, verb string, body any, what string) *cobra.Command {
	path := func(vol string) string { return "/v1/volumes/" + url.PathEscape(vol) + "/" + verb }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodPost, path(args[0]), body, nil, nil)
	}
	a.dryRunFlag(cmd)
	cmd = confirmedIf(cmd, what, func() bool { return !a.dry })
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if a.dry {
			return nil
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		t := new(model.Task)
		if _, err := c.Change(cmd.Context(), http.MethodPost, withQuery(path(args[0]), "dry_run=true"), body, t); err != nil {
			return err
		}
		for _, line := range t.Log {
			fmt.Fprintln(cmd.ErrOrStderr(), line)
		}
		return nil
	}
	return cmd
}

func newVolumeSnapshotCmd(a *app) *cobra.Command {
	path := func(vol string) string { return "/v1/volumes/" + url.PathEscape(vol) + "/snapshots" }
	cmd := &cobra.Command{Use: "snapshot", Short: "Snapshots of a volume",
		Long: "Snapshots of a volume. Taking one copies nothing and stops writes for some milliseconds; its blocks are kept when they are overwritten. " +
			"A volume that a VM uses is snapshotted by the VM's guard; a volume that nobody uses is opened for it."}
	cmd.AddCommand(
		&cobra.Command{Use: "create VOLUME NAME", Short: "Take a snapshot", Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			out := new(volume.SnapshotInfo)
			return a.change(cmd, http.MethodPost, path(args[0]), volume.SnapshotRequest{Name: args[1]}, out, func() string {
				return fmt.Sprintf("snapshot %s of volume %s taken", out.Name, args[0])
			})
		}},
		&cobra.Command{Use: "list VOLUME", Short: "List snapshots, oldest first", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var list []volume.SnapshotInfo
			return a.get(cmd, path(args[0]), &list, func() *table {
				t := newTable("NAME", "NUMBER", "CREATED")
				for _, s := range list {
					t.row(s.Name, s.Number, s.Created.Format(time.RFC3339))
				}
				return t
			})
		}},
		destroys(&cobra.Command{Use: "delete VOLUME NAME", Short: "Delete a snapshot", Annotations: map[string]string{confirmLast: "yes"}, Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, path(args[0])+"/"+url.PathEscape(args[1]), nil, nil, func() string {
				return fmt.Sprintf("snapshot %s of volume %s deleted", args[1], args[0])
			})
		}}),
		destroys(&cobra.Command{Use: "rollback VOLUME NAME", Short: "Take a volume that nobody uses back to a snapshot", Annotations: map[string]string{confirmFirst: "yes"}, Args: cobra.ExactArgs(2),
			Long: "Take a volume back to a snapshot. What was written since is lost; snapshots, newer ones too, stay. The volume must not be in use. " +
				"Once the command is accepted it is carried out, whatever fails meanwhile: who opens the volume waits until it is done.",
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.change(cmd, http.MethodPost, path(args[0])+"/"+url.PathEscape(args[1])+"/rollback", nil, nil, nil)
			}}),
	)
	return cmd
}

func newVolumeCloneCmd(a *app) *cobra.Command {
	return &cobra.Command{Use: "clone VOLUME@SNAPSHOT NAME", Short: "Make a volume that begins as a snapshot", Args: cobra.ExactArgs(2),
		Long: "Make a volume that begins as a snapshot of another. Nothing is copied first: what was not written to the clone is read from its parent, and copied in the background " +
			"whenever the clone is open; `roseau volume show` tells how far that is. Until it is done the snapshot and its volume cannot be deleted, and the clone cannot be cloned.",
		RunE: func(cmd *cobra.Command, args []string) error {
			vol, snap, ok := strings.Cut(args[0], "@")
			if !ok || vol == "" || snap == "" {
				return errs.New(errs.Invalid, "clone %q: want VOLUME@SNAPSHOT", args[0]).WithHint("`roseau volume snapshot list VOLUME` lists the snapshots")
			}
			path := "/v1/volumes/" + url.PathEscape(vol) + "/snapshots/" + url.PathEscape(snap) + "/clone"
			return a.change(cmd, http.MethodPost, path, volume.CloneRequest{Name: args[1]}, nil, nil)
		}}
}

// nodeOrSelf returns node, or the name of the node that answers.
func (a *app) nodeOrSelf(cmd *cobra.Command, node string) (string, error) {
	if node != "" {
		return node, nil
	}
	c, err := a.client()
	if err != nil {
		return "", err
	}
	var self struct {
		Node string `json:"node"`
	}
	if err := c.Get(cmd.Context(), "/v1/self", &self); err != nil {
		return "", err
	}
	return self.Node, nil
}

func volumeTable(vs []volume.Info) *table {
	t := newTable("NAME", "SIZE", "POOL", "HEALTH", "COPIES", "WRITER", "OF", "OUT")
	for _, v := range vs {
		of := v.Spec.VM
		if v.Spec.Image != "" {
			of = "image " + v.Spec.Image
		}
		t.row(v.Name, v.Spec.Size, v.Spec.Pool, healthText(&v.Status), v.Status.Copies, v.Status.Writer, of, strings.Join(v.Status.Out, "; "))
	}
	return t
}

func healthText(st *model.VolumeStatus) string {
	if st.RollingBack != "" {
		return fmt.Sprintf("%s, goes back to snapshot %s: %d%%", st.Health, st.RollingBack, st.RollbackPercent)
	}
	if st.SyncTotal > 0 {
		text := string(st.Health)
		if st.Health == model.Healthy {
			text += ", a copy moves"
		}
		text += fmt.Sprintf(" %d%%", int64(st.SyncDone)*100/int64(st.SyncTotal))
		if st.SyncLeft > 0 {
			text += fmt.Sprintf(", about %s left", max(st.SyncLeft.Round(time.Second), time.Second))
		}
		return text
	}
	return string(st.Health)
}

func volumeSheet(v *volume.Info) *table {
	t := newSheet().row("name", v.Name).row("id", v.ID).row("size", v.Spec.Size).row("pool", v.Spec.Pool).row("health", healthText(&v.Status)).
		row("copies in sync", v.Status.Copies).row("writer", v.Status.Writer).row("epoch", v.Status.Epoch).row("segments", v.Segments)
	if v.Spec.VM != "" {
		t.row("vm", v.Spec.VM)
	}
	if v.Spec.Image != "" {
		t.row("image", v.Spec.Image)
	}
	if v.Status.Parent != "" {
		t.row("parent", fmt.Sprintf("%s, %d%% copied", v.Status.Parent, v.Status.FlattenPercent))
	}
	if n := v.Status.LostBlocks; n > 0 {
		t.row("lost", fmt.Sprintf("%d blocks of 4 KiB are readable on no copy; they are whole again when they are written", n))
	}
	for _, c := range v.Copies {
		state := "in sync"
		if !c.InSync {
			state = "out"
			if c.Reason != "" {
				state += ": " + c.Reason
			}
		}
		t.row("  "+c.Disk, fmt.Sprintf("%s  %d segments  %s", c.Node, c.Segments, state))
	}
	return t
}
