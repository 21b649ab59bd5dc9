"""A real Celery worker and beat execute tasks that travel through redisproxy."""

import os
import signal
import subprocess
import sys
import tempfile

from celery import chain, chord, group

from celery_app import add, app, flaky, sleep, total
from stack import until

files = tempfile.TemporaryDirectory()
app.backend.client.delete("clients:ticks")
processes = [
    subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_app", *arguments, "--loglevel", "warning"],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        start_new_session=True,
    )
    for arguments in (
        ["worker", "-c", "2", "-Q", "clients"],
        ["beat", "--schedule", os.path.join(files.name, "schedule"), "--pidfile", ""],
    )
]
try:
    until(60, "worker answers a ping", lambda: app.control.ping(timeout=1))
    results = [add.delay(i, i) for i in range(200)]
    assert [r.get(timeout=60) for r in results] == [2 * i for i in range(200)]
    assert group(add.s(i, 1) for i in range(20))().get(timeout=60) == list(range(1, 21))
    assert chord((add.s(i, i) for i in range(10)), total.s())().get(timeout=60) == 90
    assert chord((add.s(i, i) for i in range(100)), total.s())().get(timeout=120) == 9900
    assert chain(add.s(1, 2), add.s(3), group(add.s(i) for i in range(3)))().get(timeout=60) == [6, 7, 8]
    assert flaky.delay(2).get(timeout=60) == 2
    later = add.apply_async((1, 1), countdown=1)
    assert later.get(timeout=60) == 2

    blockers = [sleep.delay(2) for _ in range(2)]
    doomed = sleep.delay(600)
    doomed.revoke()
    assert [b.get(timeout=60) for b in blockers] == ["woke", "woke"]
    until(60, "revocation", lambda: doomed.state == "REVOKED")
    # One that runs already is ended by force.
    running = sleep.delay(600)
    until(60, "task runs", lambda: any(t["id"] == running.id for a in (app.control.inspect(timeout=1).active() or {}).values() for t in a))
    running.revoke(terminate=True)
    until(60, "forced revocation", lambda: running.state == "REVOKED")
    until(60, "beat", lambda: int(app.backend.client.get("clients:ticks") or 0) >= 2)
    # Nothing is left that was taken and not acknowledged.
    until(60, "acknowledgements", lambda: app.backend.client.hlen("unacked") == 0)
finally:
    for p in reversed(processes):
        p.send_signal(signal.SIGTERM)
    for p in processes:
        try:
            p.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            raise
print("ok")
