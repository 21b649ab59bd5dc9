"""A real Celery worker executes tasks that travel through redisproxy."""

import os
import signal
import subprocess
import sys

from celery import chord, group

from celery_app import add, app, sleep, total
from stack import until

worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-c", "2", "-Q", "clients", "--loglevel", "warning"],
    cwd=os.path.dirname(os.path.abspath(__file__)),
    start_new_session=True,
)
try:
    until(60, "worker answers a ping", lambda: app.control.ping(timeout=1))
    results = [add.delay(i, i) for i in range(200)]
    assert [r.get(timeout=60) for r in results] == [2 * i for i in range(200)]
    assert group(add.s(i, 1) for i in range(20))().get(timeout=60) == list(range(1, 21))
    assert chord((add.s(i, i) for i in range(10)), total.s())().get(timeout=60) == 90
    later = add.apply_async((1, 1), countdown=1)
    assert later.get(timeout=60) == 2

    blockers = [sleep.delay(2) for _ in range(2)]
    doomed = sleep.delay(600)
    doomed.revoke()
    assert [b.get(timeout=60) for b in blockers] == ["woke", "woke"]
    until(60, "revocation", lambda: doomed.state == "REVOKED")
finally:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        raise
print("ok")
