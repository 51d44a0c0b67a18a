# Kong with the plugin key-auth: the consumers in a dump of decK (deck gateway dump), as JSON.
.consumers[]
| (.username // .custom_id) as $user
| .keyauth_credentials[]?
| {user: $user, account: $user, plan: $plan, key: .key}
