package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/textproto"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyporter/keyporter/apikey"
	"github.com/keyporter/keyporter/authz"
	"github.com/keyporter/keyporter/internal/config"
	"github.com/keyporter/keyporter/internal/operations"
	"github.com/keyporter/keyporter/internal/service"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

func (a *app) checkCommand() *cobra.Command {
	var headers []string
	var host, rule string
	cmd := &cobra.Command{
		Use: "check [METHOD] PATH", Short: "Explain the decision about a request, step by step",
		Long: `Explain the decision about a request, step by step, with the current state of the database. It sends and
charges nothing, and never prints the key. The exit status is 0 if the request would be allowed, else 1.
Put the key in a variable, so that it does not stay in the shell's history.`,
		Example: "  keyporter check GET '/api/v1/brands?page=2' -H \"X-API-Key: $KEY\"",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := checkRequest(args, headers)
			if err != nil {
				return usageError{err}
			}
			request.Host, request.Rule = cmp.Or(host, request.Host), rule
			return a.withStore(cmd, func(ctx context.Context, c config.Config, db *store.DB) error {
				return a.explain(ctx, c, db, request)
			})
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "the `host` that is asked, such as api.example.com")
	cmd.Flags().StringVar(&rule, "rule", "", "the `name` of the rule that the route of your own Envoy asks for")
	cmd.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, `'Name: value'`; may be repeated")
	config.AddFlags(cmd.Flags(), "key-prefix", "insecure-cookies", "login-url", "page-path",
		"jwt-keys", "jwt-issuer", "jwt-audience", "jwt-algorithms", "jwt-types", "jwt-keys-max-age", "jwt-claim", "jwt-cookie")
	return cmd
}

// checkRequest builds a request from a method, a path and header lines.
func checkRequest(args, headers []string) (*authz.Request, error) {
	r := &authz.Request{Method: "GET", Path: args[len(args)-1]}
	if len(args) == 2 {
		r.Method = args[0]
	}
	for _, header := range headers {
		name, value, ok := strings.Cut(header, ":")
		if !ok || textproto.TrimString(name) == "" {
			// do not quote the argument: it may be a key
			return nil, fmt.Errorf("-H wants 'Name: value'")
		}
		value = textproto.TrimString(value)
		switch strings.ToLower(textproto.TrimString(name)) {
		case "x-api-key":
			r.APIKey = append(r.APIKey, value)
		case "authorization":
			r.Authorization = append(r.Authorization, value)
		case "cookie":
			r.Cookie = append(r.Cookie, value)
		case "accept":
			r.Accept = value
		case "host":
			r.Host = value
		case "sec-websocket-protocol":
			r.Protocols = append(r.Protocols, value)
		case "origin":
			r.Origin = value
		case "access-control-request-method":
			r.RequestMethod = value
		case "content-length":
			r.Length = value
		case "transfer-encoding":
			r.TransferEncoding = value
		}
	}
	return r, nil
}

func (a *app) explain(ctx context.Context, c config.Config, db *store.DB, r *authz.Request) error {
	formats, err := operations.ReadFormats(ctx, db, apikey.FormatConfig{Prefix: c.KeyPrefix})
	if err != nil {
		return err
	}
	lookups := directory.NewLookups(db)
	logins := &authz.Sessions{Format: formats.Sessions, Find: lookups.FindSession, InsecureCookies: c.InsecureCookies}
	accepted, err := service.NewTokens(c, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return err
	}
	defer accepted.Close()
	accepted.Accept(logins, lookups.FindSubject)
	decision, problem := authz.New(authz.Config{
		Routes: c.Routes, Keys: formats.Keys, FindKey: lookups.FindKey, FindImported: lookups.FindImported, Meter: authz.Unmetered{},
		Sessions: logins, LoginURL: c.LoginRedirect(), PassPreflight: func() bool { return true },
	}).Authorize(ctx, r)
	outcome := decision.Outcome()
	result := struct {
		Status int          `json:"status"`
		Code   string       `json:"code"`
		Steps  []authz.Step `json:"steps"`
	}{outcome.Status, outcome.Code, authz.Explain(decision, problem)}
	rows := make([][]string, len(result.Steps))
	for i, step := range result.Steps {
		rows[i] = []string{step.Step, step.Result}
	}
	if err := a.print(c, result, table(rows)); err != nil {
		return err
	}
	if !decision.Allowed() {
		return errRefused
	}
	return nil
}
