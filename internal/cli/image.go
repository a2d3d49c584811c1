package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/model"
)

func newImageCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Images that VMs are created from"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List images", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var is []*model.Image
			return a.get(cmd, "/v1/images", &is, func() *table { return imageTable(is) })
		}},
		&cobra.Command{Use: "show IMAGE", Short: "Show an image", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			i := new(model.Image)
			return a.get(cmd, "/v1/images/"+url.PathEscape(args[0]), i, func() *table {
				return newSheet().row("name", i.Name).row("id", i.ID).row("size", i.Spec.Size).row("format of the file", i.Spec.Format).
					row("sha256 of the file", i.Spec.SHA256).row("pool", i.Spec.Pool).row("ready", yes(i.Status.Ready))
			})
		}},
		newImageImportCmd(a),
		destroys(&cobra.Command{Use: "delete IMAGE", Short: "Delete an image; VMs made of it stay", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, "/v1/images/"+url.PathEscape(args[0]), "image "+args[0])
		}}),
	)
	return cmd
}

func newImageImportCmd(a *app) *cobra.Command {
	var name, pool string
	cmd := &cobra.Command{Use: "import FILE|-", Short: "Import a raw or qcow2 file (- reads standard input)", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		body := io.Reader(cmd.InOrStdin())
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return errs.New(errs.Invalid, "import image: %w", err)
			}
			defer f.Close()
			if st, err := f.Stat(); err == nil && st.IsDir() {
				return errs.New(errs.Invalid, "import image: %s is a directory", args[0])
			}
			body = f
		}
		if name == "" {
			name = imageName(args[0])
		}
		if name == "" {
			return errs.New(errs.Invalid, "import image: give it a name with --name")
		}
		return a.upload(cmd, "/v1/images?"+url.Values{"name": {name}, "pool": {pool}}.Encode(), body)
	}}
	cmd.Flags().StringVar(&name, "name", "", "name of the image (default: of the file)")
	cmd.Flags().StringVar(&pool, "pool", "", "pool (default: the only one)")
	return cmd
}

// upload sends a file and follows the task that answers.
func (a *app) upload(cmd *cobra.Command, path string, body io.Reader) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if _, err := c.Upload(cmd.Context(), http.MethodPost, path, body, &raw); err != nil {
		return err
	}
	t := new(model.Task)
	if err := json.Unmarshal(raw, t); err != nil {
		return fmt.Errorf("import image: decode task: %w", err)
	}
	return a.follow(cmd, t)
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// imageName makes a name of a file's.
func imageName(file string) string {
	if file == "-" {
		return ""
	}
	base := strings.ToLower(filepath.Base(file))
	base = strings.TrimSuffix(base, filepath.Ext(base))
	return strings.Trim(notName.ReplaceAllString(base, "-"), "-")
}

func imageTable(is []*model.Image) *table {
	t := newTable("NAME", "SIZE", "FORMAT", "POOL", "READY", "SHA256")
	for _, i := range is {
		t.row(i.Name, i.Spec.Size, i.Spec.Format, i.Spec.Pool, yes(i.Status.Ready), i.Spec.SHA256[:min(12, len(i.Spec.SHA256))])
	}
	return t
}
