"""What every client script needs: where the stack is and how to log in.

The scripts are run by the tests of test/stack and test/gateway, which put the path of the
stack's credentials file into FOURNINES_CREDENTIALS. They use clients that
nobody here wrote, the way an application would use them.
"""

import json
import os
import time

with open(os.environ["FOURNINES_CREDENTIALS"], encoding="utf-8") as f:
    credentials = json.load(f)


def until(limit, what, check):
    """Calls check until it returns something true, for limit seconds at most."""
    deadline = time.monotonic() + limit
    while True:
        got = check()
        if got:
            return got
        assert time.monotonic() < deadline, f"{what}: not within {limit} s"
        time.sleep(0.05)
