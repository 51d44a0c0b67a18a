package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
)

func (a *app) sealCommand() *cobra.Command {
	initial := &cobra.Command{
		Use: "init FILE|-", Short: "Make a sealing key pair, so that the page can show users their key again",
		Long: `Make a sealing key pair. The private half goes to FILE, readable by its owner only: give it to
the processes that serve the page and to nobody else. The public half goes to the database; from
then on Keyporter keeps a copy of every new key that only the private half opens. Repeating the
command with the same FILE changes nothing. With - instead of FILE it prints the private half.`,
		Example: "  keyporter seal init seal.key\n  keyporter seal init - | vault kv put secret/keyporter seal=-",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operateHere(cmd, func(ctx context.Context, c config.Config, by operations.Operator) error {
				if args[0] == "-" || args[0] == "/dev/stdout" {
					return by.Seal().Make(ctx, func(private []byte) error {
						return a.print(c, map[string]string{"file": "-", "private_key": string(private)}, string(private))
					})
				}
				if err := by.Seal().Init(ctx, args[0]); err != nil {
					return err
				}
				return a.print(c, map[string]string{"file": args[0]}, "private seal key written to "+args[0]+"\n")
			})
		},
	}
	return group("seal", "Manage the key pair that seals copies of users' keys", initial, a.sealRotateCommand())
}

func (a *app) sealRotateCommand() *cobra.Command {
	var r operations.Rotation
	cmd := &cobra.Command{
		Use: "rotate FILE", Short: "Replace the sealing key pair, and seal all copies again",
		Long: `Replace the sealing key pair. A new private half is put into FILE in front of the old one, its
public half into the database, all copies of live keys are sealed again to it, and the old private
half is taken out of FILE. Each step can be broken off and the command repeated: no key is lost.

Where several machines have copies of FILE:
  1. keyporter seal rotate FILE --prepare     adds the new private half, and nothing else
  2. copy FILE to all of them                 the page reads it each time it shows a key
  3. keyporter seal rotate FILE --keep-old    goes over to the new one
  4. keyporter seal rotate FILE               takes the old private half out of FILE
  5. copy FILE to all of them`,
		Example: "  keyporter seal rotate seal.key",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Prepare && r.KeepOld {
				return usageError{errors.New("--prepare changes nothing but FILE, and --keep-old all the rest: one after the other")}
			}
			return a.operateHere(cmd, func(ctx context.Context, c config.Config, by operations.Operator) error {
				r.File = args[0]
				resealed, err := by.Seal().Rotate(ctx, r)
				if err != nil {
					return err
				}
				text := fmt.Sprintf("%d copies were sealed again, and %s holds the one private half\n", resealed, r.File)
				switch {
				case r.Prepare:
					text = fmt.Sprintf("%s holds the new private half beside the old one; nothing else was changed\n", r.File)
				case r.KeepOld:
					text = fmt.Sprintf("%d copies were sealed again; %s still holds the old private half\n", resealed, r.File)
				}
				return a.print(c, map[string]any{"file": r.File, "resealed": resealed}, text)
			})
		},
	}
	cmd.Flags().BoolVar(&r.Prepare, "prepare", false, "only add a new private half to FILE")
	cmd.Flags().BoolVar(&r.KeepOld, "keep-old", false, "leave the old private half in FILE")
	return cmd
}
