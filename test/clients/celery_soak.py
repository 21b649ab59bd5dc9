"""Celery under failovers: tasks are sent and worked off while somebody kills
Redis masters. Every task that was sent must run, and nothing may stay behind.

TASKS is how many, DONE the file to which each task appends its number.
"""

import os
import signal
import subprocess
import sys
import time

from celery_app import app, mark
from stack import until

count, done = int(os.environ["TASKS"]), os.environ["DONE"]
open(done, "w").close()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the worker is ended, too
worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-c", "2", "-Q", "clients", "--loglevel", "warning"],
    cwd=os.path.dirname(os.path.abspath(__file__)),
    start_new_session=True,
)
refused = 0
began = time.monotonic()


def finished():
    with open(done, encoding="utf-8") as f:
        return [int(line) for line in f]


def left():
    client = app.backend.client
    return client.llen("clients") + client.hlen("unacked")


try:
    for i in range(count):
        while True:
            try:
                mark.apply_async((done, i), ignore_result=True)
                break
            except Exception as e:  # an application would answer 500; here it is sent again
                refused += 1
                print(f"task {i} was not accepted: {e!r}", file=sys.stderr)
                time.sleep(0.1)
    try:
        until(120 + count / 50, "every task has run", lambda: len(set(finished())) == count)
        took = time.monotonic() - began
        until(120, "nothing is left", lambda: left() == 0)
    except AssertionError as e:
        missing = sorted(set(range(count)) - set(finished()))
        sys.exit(f"{e}; {left()} are left at the broker, {len(missing)} have not run: {missing[:20]}")
finally:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(worker.pid, signal.SIGKILL)
        raise
ran = finished()
print(f"{count} tasks in {took:.0f} s, all have run, {len(ran) - count} of them twice; {refused} were refused when they were sent, and sent again")
print("ok")
