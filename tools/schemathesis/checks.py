"""How Schemathesis tests the operators' API (`make schemathesis`): with all of its checks.

The check positive_data_acceptance takes every value that a schema allows for one that must be
accepted. So accepts_what_is_documented takes its place: the same check, which knows the rules that
no schema can express.
"""

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

# The fields and parameters with rules that a JSON schema cannot express. A value that breaks one is
# refused with 400, although the document allows it.
RULES = {
    "cursor": "must come from an earlier answer",
    "plan": "must be given for a new account",
    "account": "must be given for a new user",
    "items": "must not name the same twice",
    "name": "must be the name in the path",
    "rate_window": "must be between one second and a day",
    "ttl": "must be between one second and 90 days",
    "from": "must be a month or a day that is over or begun, not after to",
    "to": "must be a month or a day",
    "group_by": "must fit to user",
    "user": "excludes account",
    "rule": "must be in the route table of the service",
    "If-Match": "excludes If-None-Match",
    "subject": "must be at most 255 bytes",
    "Idempotency-Key": "must be that of the same call",
}


@schemathesis.check
def accepts_what_is_documented(ctx, response, case):
    """The check positive_data_acceptance, but for the fields above."""
    if response.status_code == 412:  # a precondition is there to fail
        return None
    if response.status_code == 400:
        field = response.json().get("field", "").rpartition(".")[2]  # of an item: items[0].account
        if field in RULES:
            return None
    return positive_data_acceptance(ctx, response, case)
