package directory_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyporter/keyporter/internal/storetest"
	"github.com/keyporter/keyporter/store"
	"github.com/keyporter/keyporter/store/directory"
)

// The audit also records plain SQL, with the database's user, for any statement; a bulk change is
// one line in PostgreSQL. Existing entries can neither be changed nor deleted.
func TestTheAuditSeesPlainSQL(t *testing.T) {
	storetest.OnEach(t, func(t *testing.T, url string) {
		db := storetest.Open(t, store.Config{URL: url})
		f := storetest.SQL{T: t, DB: db.Changes}
		f.Exec(storetest.People...)
		postgres := strings.HasPrefix(url, "postgres")
		type row struct{ statement, want string }
		rows := []row{
			{`UPDATE users SET status = 'disabled' WHERE name = 'ada'`, `changed user ada {"status":["active","disabled"]}`},
			{`UPDATE plans SET credits = NULL WHERE name = 'pro'`, `changed plan pro {"credits":[20000,null]}`},
			{`UPDATE accounts SET plan = plan`, ``},
			{`UPDATE keys SET revoked_at = 7 WHERE id = 'kb'`, `changed key bob {"revoked_at":[null,7]}`},
			{`DELETE FROM sessions WHERE user_name = 'bob'`, `deleted session bob {"user_name":"bob","created_at":0,"expires_at":9,"revoked_at":null}`},
			{`UPDATE keys SET digest = '` + storetest.Digest('x') + `', revoked_at = NULL WHERE id = 'kb'`, `changed key bob {"revoked_at":[7,null],"digest":"replaced"}`},
			{`UPDATE keys SET digest = '` + storetest.Digest('y') + `' WHERE id = 'kb'`, `changed key bob {"digest":"replaced"}`},
		}
		for _, r := range rows {
			before := newestAudit(t, db)
			f.Exec(r.statement)
			entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(entries) > 0 && entries[0].ID > before {
				e := entries[0]
				got = fmt.Sprintf("%s %s %s %s", e.Action, e.Kind, e.Name, strings.ReplaceAll(string(e.Detail), " ", ""))
				if postgres != strings.HasPrefix(e.Actor, "sql:") || !strings.HasPrefix(e.Actor, "sql") {
					t.Errorf("%s: by %s", r.statement, e.Actor)
				}
			}
			if !sameDetail(got, r.want) {
				t.Errorf("%s:\n%s, want\n%s", r.statement, got, r.want)
			}
		}
		attacks := []string{`UPDATE audit SET actor = 'nobody'`, `DELETE FROM audit`,
			`INSERT INTO audit (id, actor, action, kind, name, detail) SELECT id, 'nobody', action, kind, name, detail FROM audit`}
		if postgres {
			attacks = append(attacks, `TRUNCATE audit`, `SET session_replication_role = replica; DELETE FROM audit`)
		} else {
			attacks = append(attacks, `REPLACE INTO audit (id, actor, action, kind, name, detail) SELECT id, 'nobody', action, kind, name, detail FROM audit`)
		}
		for _, attack := range attacks {
			if _, err := db.Changes.Exec(attack); err == nil {
				t.Errorf("%s: succeeded", attack)
			}
		}
		if !postgres {
			return
		}
		f.Exec(`RESET session_replication_role`)
		before := newestAudit(t, db)
		f.Exec(`INSERT INTO users (name, kind, account, status) SELECT 'u' || i, 'person', 'acme', 'active' FROM generate_series(1, 1500) i`)
		entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{})
		if err != nil || entries[0].ID != before+1 || entries[0].Name != "*" || string(entries[0].Detail) != `{"rows": 1500}` {
			t.Errorf("1,500 rows at once: %+v, %v", entries[0], err)
		}
	})
}

// sameDetail compares two lines with JSON fields in any order.
func sameDetail(got, want string) bool {
	sorted := func(s string) string {
		parts := strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("{},", r) })
		for i := range parts {
			for j := i + 1; j < len(parts); j++ {
				if parts[j] < parts[i] {
					parts[i], parts[j] = parts[j], parts[i]
				}
			}
		}
		return strings.Join(parts, ",")
	}
	return sorted(got) == sorted(want)
}

func newestAudit(t *testing.T, db *store.DB) int64 {
	t.Helper()
	entries, err := directory.NewAudit(db).List(t.Context(), directory.AuditFilter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		return 0
	}
	return entries[0].ID
}
