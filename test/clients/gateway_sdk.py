"""The Dify SDK from PyPI talks to a gateway in front of simulated instances."""

import json

from dify_client import ChatClient, CompletionClient

from stack import credentials

where = credentials["gateway"]


def client(kind):
    c = kind(where["appKey"])
    c.base_url = where["url"] + "/v1"
    return c


chat = client(ChatClient)
answer = chat.create_chat_message({}, "What are your opening hours?", "sdk-user", response_mode="blocking")
assert answer.status_code == 200, answer.text
body = answer.json()
assert body["answer"].startswith("You asked: What") and body["mode"] == "chat" and body["metadata"]["usage"], body

stream = chat.create_chat_message({}, "And on Sunday?", "sdk-user", "streaming")
assert stream.status_code == 200, stream.text
assert stream.headers["content-type"].startswith("text/event-stream"), stream.headers
events = [json.loads(line[6:]) for line in stream.iter_lines(decode_unicode=True) if line.startswith("data: ")]
assert events[-1]["event"] == "message_end", [e["event"] for e in events]
assert "".join(e["answer"] for e in events if e["event"] == "message").startswith("You asked: And")

completion = client(CompletionClient).create_completion_message({"query": "a b"}, "blocking", "sdk-user")
assert completion.status_code == 200 and completion.json()["mode"] == "completion", completion.text

assert chat.get_application_parameters("sdk-user").status_code == 200
print("ok")
