# Verifies one event: the secret and the headers are arguments, and the body is the input.
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

secret, id, timestamp, signature = sys.argv[1:]
headers = {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature}
body = sys.stdin.buffer.read()
Webhook(secret).verify(body, headers)
try:
    Webhook(secret).verify(body + b" ", headers)
except WebhookVerificationError:
    print(json.loads(body)["type"])
