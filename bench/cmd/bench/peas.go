package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/keyporter/keyporter/internal/parts"
)

// peasApp is the application with the key that path-external-auth-server knows. It is part of the
// path.
const peasApp = "bench"

// peasTables are the tables and columns that path-external-auth-server reads.
const peasTables = `
	CREATE TABLE accounts (id varchar(10) PRIMARY KEY, plan_type varchar(25), monthly_user_limit int);
	CREATE TABLE portal_applications (id varchar(24) PRIMARY KEY, account_id varchar(10), deleted boolean NOT NULL DEFAULT false);
	CREATE TABLE portal_application_settings (
		id serial PRIMARY KEY, application_id varchar(24), secret_key varchar(64), secret_key_required boolean);
	INSERT INTO accounts VALUES ('bench', 'PLAN_UNLIMITED', 1000000000);
	INSERT INTO portal_applications VALUES ('` + peasApp + `', 'bench')`

// startPEAS starts a path-external-auth-server that knows one key, in a PostgreSQL of its own. That
// server also counts usage with a query to Google BigQuery, and also starts if that fails.
func (l *lab) startPEAS(ctx context.Context, binary, key string) error {
	postgres, err := parts.StartPostgres(ctx, parts.PostgresConfig{})
	if err != nil {
		return err
	}
	l.cleanups = append(l.cleanups, postgres.Kill)
	const name = "peas"
	if err := postgres.CreateDatabase(ctx, name); err != nil {
		return err
	}
	database, err := url.Parse(postgres.URL(name))
	if err != nil {
		return err
	}
	database.User = url.UserPassword(database.User.Username(), "any") // it requires a password
	if err := fillPEAS(ctx, database.String(), key); err != nil {
		return err
	}
	account, err := l.noGoogle()
	if err != nil {
		return err
	}
	profiles, err := parts.FreeAddr()
	if err != nil {
		return err
	}
	l.peas, err = l.launch(ctx, "path-external-auth-server", binary, func(checks, ops string) (args, env []string) {
		return nil, []string{ // it listens on all addresses of the machine
			"POSTGRES_CONNECTION_STRING=" + database.String(), "GCP_PROJECT_ID=none", "GOOGLE_APPLICATION_CREDENTIALS=" + account,
			"PORT=" + port(checks), "METRICS_PORT=" + port(ops), "PPROF_PORT=" + port(profiles), "LOGGER_LEVEL=error",
		}
	})
	return err
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func fillPEAS(ctx context.Context, database, key string) (err error) {
	db, err := sql.Open("postgres", database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, peasTables); err != nil {
		return fmt.Errorf("making the tables of path-external-auth-server: %w", err)
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)
		VALUES ($1, $2, true)`, peasApp, key); err != nil {
		return fmt.Errorf("telling path-external-auth-server a key: %w", err)
	}
	return nil
}

// noGoogle starts a server that rejects every request for a token, and returns a credentials file
// that points to it, so that nothing is sent to Google.
func (l *lab) noGoogle() (file string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error": "invalid_grant"}`, http.StatusBadRequest)
	})}
	go func() { _ = server.Serve(listener) }()
	l.cleanups = append(l.cleanups, func() { _ = server.Close() })
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "nobody@example.com", "token_uri": "http://" + listener.Addr().String(),
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		return "", err
	}
	file = filepath.Join(l.dir, "google.json")
	return file, os.WriteFile(file, account, 0o600)
}
