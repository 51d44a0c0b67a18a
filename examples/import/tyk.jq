# Tyk: one object for each key in its Redis, {"key": …, "session": …}. With hash_keys the name of a
# key is its hash; hash_key_function must be sha256, because nothing else can be looked up here.
(if (.session.alias // "") != "" then .session.alias else "tyk-" + .key[0:12] end) as $user
| {
    user: $user, account: $user, plan: $plan,
    status: (if .session.is_inactive then "disabled" else "active" end)
  }
  + (if (.session.quota_max // -1) > 0 then {credits_used: ([.session.quota_max - .session.quota_remaining, 0] | max)} else {} end)
  + (if .key | test("^[0-9a-f]{64}$") then {key_sha256: .key} else {key: .key} end)
