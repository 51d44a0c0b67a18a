# Unkey: the rows of its table keys with the external_id of their identity, one object on each line.
# The column hash is the SHA-256 of the key in base64.
select(.deleted_at_m == null)
| (.external_id // .owner_id // .id) as $user
| {
    user: $user, account: $user, plan: $plan, key_sha256: .hash,
    key_status: (if .enabled == 0 or .enabled == false then "revoked" else "active" end)
  }
