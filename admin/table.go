package admin

import (
	"github.com/keyporter/keyporter/bearer"
)

// table returns the table of all operations, in the order of the document.
func table() []operation {
	const (
		plan, account, user = "/v1/plans/{plan}", "/v1/accounts/{account}", "/v1/users/{user}"
		get, put, patch     = "GET", "PUT", "PATCH"
		del, post           = "DELETE", "POST"
	)
	return []operation{
		newOperation("plans.list", get, "/v1/plans", bearer.Read, "List the plans, by name", listPlans),
		newOperation("plans.get", get, plan, bearer.Read, "Get a plan", findPlan),
		newOperation("plans.set", put, plan, bearer.Write, "Create a plan, or change the fields that the body names", putPlan),
		newOperation("plans.change", patch, plan, bearer.Write, "Change the fields of a plan that the body names", patchPlan),
		newOperation("plans.delete", del, plan, bearer.Write, "Delete a plan that no account has", deletePlan, inUse),

		newOperation("accounts.list", get, "/v1/accounts", bearer.Read, "List the accounts, by name", listAccounts),
		newOperation("accounts.get", get, account, bearer.Read, "Get an account", findAccount),
		newOperation("accounts.set", put, account, bearer.Write, "Create an account, or change the fields that the body names", putAccount, missingReference),
		newOperation("accounts.change", patch, account, bearer.Write, "Change the fields of an account that the body names", patchAccount, missingReference),
		newOperation("accounts.delete", del, account, bearer.Write, "Delete an account without users", deleteAccount, inUse),

		newOperation("users.list", get, "/v1/users", bearer.Read, "List the users, by name", listUsers),
		newOperation("users.get", get, user, bearer.Read, "Get a user", findUser),
		newOperation("users.set", put, user, bearer.Write, "Create a user, or change the fields that the body names", putUser, missingReference, exists),
		newOperation("users.change", patch, user, bearer.Write, "Change the fields of a user that the body names", patchUser, missingReference, exists),
		newOperation("users.delete", del, user, bearer.Write, "Delete a user with their keys and sessions", deleteUser),
		newOperation("users.batch", post, "/v1/users:batch", bearer.Write, "Create or change up to 1000 users at once, each like a PUT: all, or none", setUsers, missingReference, exists),
		newOperation("users.overview", get, user+"/overview", bearer.Read, "Show what the user's page shows, without the key", showUser),

		newOperation("keys.list", get, "/v1/keys", bearer.Read, "List the keys, revoked ones included, by user and newest first", listKeys),
		newOperation("keys.verify", post, "/v1/keys:verify", bearer.Verify, "Ask what a key is, from the memory of this replica", verifyKey),
		newOperation("keys.get", get, user+"/key", bearer.Read, "Get the live key of a user, without the key itself", findKey),
		newOperation("keys.create", post, user+"/key:create", bearer.Keys, "Make a key for a user without one", createKey, exists),
		newOperation("keys.regenerate", post, user+"/key:regenerate", bearer.Keys, "Replace the key of a user at once", regenerateKey, keyReplaced),
		newOperation("keys.revoke", post, user+"/key:revoke", bearer.Keys, "Revoke the key of a user", revokeKey),
		newOperation("keys.create_batch", post, "/v1/keys:batch-create", bearer.Keys, "Make keys for up to 1000 users without one: for all, or for none", createKeys, missingReference, exists),
		newOperation("keys.revoke_batch", post, "/v1/keys:batch-revoke", bearer.Keys, "Revoke the keys of up to 1000 users: of all, or of none", revokeKeys, missingReference),
		newOperation("keys.reveal", post, user+"/key:reveal", bearer.Keys, "Show the key of a user, where a sealed copy is kept; the audit records it", revealKey, noKey, keyNotKept, keyUnreadable, outcomeUnknown),

		newOperation("sessions.create", post, user+"/sessions", bearer.Keys, "Make a browser session, as the cookie of the users' page", createSession),
		newOperation("sessions.revoke", post, user+"/sessions:revoke", bearer.Keys, "End all sessions of a user, their login links, and the tokens that your web app has signed so far", revokeSessions),
		newOperation("login_links.create", post, user+"/login-links", bearer.Keys, "Make a link that logs a user in once, within ten minutes", createLink),

		newOperation("credits.get", get, user+"/credits", bearer.Read, "Get the credits of a user in this month", showCredits),
		newOperation("credits.grant", post, user+"/credits:grant", bearer.Credits, "Grant a user more credits for this month", grantCredits),
		newOperation("credits.batch", post, "/v1/credits:batch", bearer.Credits, "Make up to 1000 grants at once: all, or none", grantAll, missingReference),
		newOperation("credits.statement", get, user+"/credits/statement", bearer.Read, "List what happened to the credits of a user in a month", statement),
		newOperation("credits.account_statement", get, account+"/credits/statement", bearer.Read, "List what happened in a month to the credits of all users of an account", accountStatement),
		newOperation("usage.list", get, "/v1/usage", bearer.Read, "List what accounts and users have used, by month or by day, for invoices; the list has no pages, however long it is", listUsage, notFound),
		newOperation("ledger.verify", post, "/v1/ledger:verify", bearer.Read, "Check that the ledger of credits adds up", verifyLedger),

		newOperation("events.list", get, "/v1/events", bearer.Read, "List the events for webhooks and what became of them, oldest first", listEvents),
		newOperation("events.retry", post, "/v1/events/{event}/delivery:retry", bearer.Write, "Send an event again at once, also a delivered one, with the same id", retryEvent),
		newOperation("webhooks.list", get, "/v1/webhooks", bearer.Read, "List the webhooks and what waits for them", listWebhooks),
		newOperation("webhooks.retry", post, "/v1/webhooks/{endpoint}/delivery:retry", bearer.Write, "Enable a webhook, and send its events again that were put aside or wait after a failure", retryWebhook),

		newOperation("audit.list", get, "/v1/audit", bearer.Read, "List who changed what, newest first", listAudit),
		newOperation("replicas.list", get, "/v1/replicas", bearer.Read, "List the running replicas", listReplicas),
		newOperation("openapi.get", get, "/v1/openapi.json", "", "Get this document", openAPI),
	}
}
