"""The Dify SDK from PyPI talks to the gateway."""

import json

from dify_client import ChatClient, CompletionClient

from stack import credentials

where = credentials["gateway"]
chat = ChatClient(where["appKey"])
chat.base_url = where["url"] + "/v1"

answer = chat.create_chat_message({}, "What are your opening hours?", "sdk-user", response_mode="blocking")
assert answer.status_code == 200, answer.text
body = answer.json()
assert body["answer"] and body["conversation_id"], body

stream = chat.create_chat_message({}, "And on Sunday?", "sdk-user", "streaming", body["conversation_id"])
assert stream.status_code == 200, stream.text
assert stream.headers["content-type"].startswith("text/event-stream"), stream.headers
events = [json.loads(line[6:]) for line in stream.iter_lines(decode_unicode=True) if line.startswith("data: ")]
assert events[-1]["event"] == "message_end", [e["event"] for e in events]
assert "".join(e["answer"] for e in events if e["event"] == "message")
assert {e["conversation_id"] for e in events} == {body["conversation_id"]}

messages = chat.get_conversation_messages("sdk-user", body["conversation_id"]).json()
assert len(messages["data"]) == 2, messages
assert chat.get_conversations("sdk-user").json()["data"]
assert chat.get_application_parameters("sdk-user").status_code == 200
rating = chat.message_feedback(body["message_id"], "like", "sdk-user")
assert rating.json() == {"result": "success"}, rating.text

wrong = ChatClient("app-wrong")
wrong.base_url = chat.base_url
assert wrong.create_chat_message({}, "hi", "sdk-user").status_code == 401
print("ok")
