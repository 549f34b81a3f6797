package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/keelson-io/keelson/pkg/config"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// fileStatus is what keelson snapshot status says: what etcdutl says, by its
// names, and more.
type fileStatus struct {
	Hash     uint32 `json:"hash"`
	Revision int64  `json:"revision"`
	TotalKey int64  `json:"totalKey"`
	Size     int64  `json:"totalSize"`
	Version  string `json:"version"`

	Compacted int64 `json:"compactRevision"`
	Versions  int64 `json:"versions"`
	Leases    int   `json:"leases"`
	Checksum  bool  `json:"checksum"` // there is one, and it is right
}

func newStatus() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "status FILE",
		Short:   "Say what is in a snapshot, and whether it is whole",
		Long:    statusHelp,
		Example: statusExamples,
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			write, ok := statusFormats[format]
			if !ok {
				return config.Usagef("--write-out %s: use simple, fields, json or table", format)
			}
			s, err := readStatus(cmd, args[0])
			if err != nil {
				return err
			}
			return write(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVarP(&format, "write-out", "w", "simple", "`format`: simple, fields, json or table")
	return cmd
}

func readStatus(cmd *cobra.Command, file string) (s *fileStatus, err error) {
	ctx, stop := interruptible(cmd)
	defer stop()
	src, err := verifyPath(ctx, cmd, file, true)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	count := newTally(nil)
	p := startProgress(cmd.ErrOrStderr(), "reading", src.State().Records)
	_, err = snapshot.Copy(ctx, count, src, p.report)
	p.end()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	info, err := src.Info()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	state := src.State()
	return &fileStatus{
		Hash: info.Hash, Revision: state.Revision, TotalKey: count.keys, Size: info.Size, Version: info.Version,
		Compacted: state.Compacted, Versions: count.versions, Leases: len(state.Leases), Checksum: src.HasChecksum(),
	}, nil
}

// row is the status as texts, with their titles. What etcdutl prints comes
// first, as it does.
func (s *fileStatus) row() (titles, texts []string) {
	return []string{"hash", "revision", "total keys", "total size", "version", "compact revision", "versions", "leases", "checksum"},
		[]string{
			fmt.Sprintf("%x", s.Hash), fmt.Sprint(s.Revision), fmt.Sprint(s.TotalKey), humanize.Bytes(uint64(s.Size)), s.Version,
			fmt.Sprint(s.Compacted), fmt.Sprint(s.Versions), fmt.Sprint(s.Leases), fmt.Sprint(s.Checksum),
		}
}

var statusFormats = map[string]func(io.Writer, *fileStatus) error{
	"simple": func(w io.Writer, s *fileStatus) error {
		_, texts := s.row()
		_, err := fmt.Fprintln(w, strings.Join(texts, ", "))
		return err
	},
	"fields": func(w io.Writer, s *fileStatus) error {
		_, err := fmt.Fprintf(w, "\"Hash\" : %d\n\"Revision\" : %d\n\"Keys\" : %d\n\"Size\" : %d\n\"Version\" : %s\n"+
			"\"CompactRevision\" : %d\n\"Versions\" : %d\n\"Leases\" : %d\n\"Checksum\" : %t\n",
			s.Hash, s.Revision, s.TotalKey, s.Size, s.Version, s.Compacted, s.Versions, s.Leases, s.Checksum)
		return err
	},
	"json": func(w io.Writer, s *fileStatus) error { return json.NewEncoder(w).Encode(s) },
	"table": func(w io.Writer, s *fileStatus) error {
		titles, texts := s.row()
		var b strings.Builder
		line := func(left, between, right string) {
			b.WriteString(left)
			for i := range titles {
				if i > 0 {
					b.WriteString(between)
				}
				b.WriteString(strings.Repeat("─", max(len(titles[i]), len(texts[i]))+2))
			}
			b.WriteString(right + "\n")
		}
		cells := func(cells []string) {
			for i, cell := range cells {
				fmt.Fprintf(&b, "│ %*s ", max(len(titles[i]), len(texts[i])), cell)
			}
			b.WriteString("│\n")
		}
		line("┌", "┬", "┐")
		for i := range titles {
			titles[i] = strings.ToUpper(titles[i])
		}
		cells(titles)
		line("├", "┼", "┤")
		cells(texts)
		line("└", "┴", "┘")
		_, err := io.WriteString(w, b.String())
		return err
	},
}
