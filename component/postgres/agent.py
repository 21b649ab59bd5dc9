"""Starts Patroni, with its handling of the leader key and of demotions mended where it is faulty.

Up to 3.0.2 Patroni with etcd 3 renews the leader key without comparing when its
lease is gone. A primary that was cut off until its lease expired so takes the key
from its successor when it is back, and with it the leadership: what the successor
has acknowledged meanwhile is rewound. From 3.0.3 on Patroni compares.

Up to 3.1.2 it releases the key only if nobody, itself included, has written it
since it last looked. A Patroni that is started again beside a dead PostgreSQL has
just bound the key to its new lease; it says that it has released the key, keeps
it, and so keeps the standbys from taking over.

Any release demotes a primary that has lost etcd once more in each round that the
first demotion still takes, because PostgreSQL waits for standbys that it cannot
reach either. Each then starts PostgreSQL, and the one that is started first is
lost sight of: pg_rewind fails beside it, and its data directory is deleted and
made anew while it runs and writes (https://github.com/patroni/patroni/issues/3649).
"""
import contextlib
import functools
import inspect
import sys
import threading
import time

# The first releases in which renewal and release of the key are right.
RENEWAL_MENDED = (3, 0, 3)
RELEASE_MENDED = (3, 2, 0)


def release(version):
    """The first three numbers of a version: (3, 0, 2) of "3.0.2" or "3.0.2-1"."""
    numbers = []
    for part in version.split('.')[:3]:
        digits = ''
        for c in part:
            if not c.isdigit():
                break
            digits += c
        numbers.append(int(digits or 0))
    return tuple(numbers)


def mend(version):
    """Replaces what needs it in this Patroni, and returns the names of that.

    Exits when Patroni is not as expected: a node without this mending can destroy
    acknowledged writes, so it must not start.
    """
    mended = mend_leader_key(version)
    from patroni.ha import Ha
    if list(inspect.signature(Ha.demote).parameters) == ['self', 'mode']:
        Ha.demote = one_at_a_time(Ha.demote)
        mended.append('demotion without etcd')
    return mended


def mend_leader_key(version):
    """Replaces what this Patroni does wrongly with the leader key, and returns the names of that."""
    mended = []
    if release(version) >= RELEASE_MENDED:
        return mended
    from patroni.dcs import AbstractDCS
    from patroni.dcs.etcd import catch_etcd_errors
    from patroni.dcs.etcd3 import Etcd3, PatroniEtcd3Client
    # What the replacements call, and how they are called.
    expected = [
        (AbstractDCS, '_delete_leader', ['self']),
        (PatroniEtcd3Client, 'call_rpc', ['self', 'method', 'fields', 'retry'])]
    if release(version) < RENEWAL_MENDED:
        expected += [
            (AbstractDCS, '_update_leader', ['self']),
            (Etcd3, '_do_refresh_lease', ['self', 'force', 'retry']),
            (Etcd3, '_run_and_handle_exceptions', ['self', 'method', 'args', 'kwargs'])]
    for owner, name, parameters in expected:
        found = list(inspect.signature(getattr(owner, name)).parameters)
        if found != parameters:
            sys.exit('Patroni {0} handles the leader key wrongly and cannot be mended: {1}.{2} takes {3}, '
                     'expected {4}; install Patroni 3.2 or newer'.format(version, owner.__name__, name, found, parameters))
    if release(version) < RENEWAL_MENDED:
        Etcd3._update_leader = update_leader
        mended.append('renewal of the leader key')
    Etcd3._delete_leader = catch_etcd_errors(delete_leader)
    mended.append('release of the leader key')
    return mended


def update_leader(self):
    """Renews the lease; false when the leader key is another's, or was meanwhile.

    It stands in for Etcd3._update_leader.
    """
    from patroni.dcs import Leader, ReturnFalseException
    from patroni.dcs.etcd3 import Etcd3Error, base64_encode
    budget = self._retry.copy()

    def retry(*args, **kwargs):
        kwargs['retry'] = budget
        return budget(*args, **kwargs)

    def put_leader(*compare):
        """Puts the leader key if all comparisons hold, and tells if they did."""
        budget.deadline = budget.stoptime - time.time()
        if budget.deadline < 1:
            raise Etcd3Error('update_leader timeout')

        def txn(retry):
            # The client changes what it is given, so each try gets its own.
            return self._client.call_rpc('/kv/txn', {
                'compare': list(compare),
                'success': [{'request_put': {'key': key, 'value': value, 'lease': self._lease}}],
            }, retry)
        return bool(self._run_and_handle_exceptions(txn, retry=retry).get('succeeded'))

    try:
        self._run_and_handle_exceptions(self._do_refresh_lease, True, retry=retry)
        if not self._lease:
            return False
        cluster = self.cluster
        leader = cluster and cluster.leader
        if isinstance(leader, Leader) and leader.session == self._lease:
            return True
        key, value = base64_encode(self.leader_path), base64_encode(self._name)
        # Nobody but this node writes its name, so nobody else has led since.
        if put_leader({'key': key, 'target': 'VALUE', 'value': value}):
            return True
        if not cluster:
            return False
        absent = [{'key': key, 'target': 'CREATE', 'create_revision': 0}]
        # The key can also be gone because a successor had it and lost it. Whoever
        # is promoted writes the key "sync" first, so it must still be this node's.
        sync = cluster.sync
        if sync and sync.leader:
            if sync.leader != self._name:
                return False
            absent.append({'key': base64_encode(self.sync_path), 'target': 'MOD', 'mod_revision': sync.index})
        return put_leader(*absent)
    except ReturnFalseException:
        return False


def delete_leader(self):
    """Deletes the leader key if it is this node's.

    It stands in for Etcd3._delete_leader.
    """
    from patroni.dcs.etcd3 import base64_encode
    key = base64_encode(self.leader_path)
    return self._client.call_rpc('/kv/txn', {
        'compare': [{'key': key, 'target': 'VALUE', 'value': base64_encode(self._name)}],
        'success': [{'request_delete_range': {'key': key}}],
    })


def one_at_a_time(demote):
    """Lets no demotion without etcd begin while another one runs.

    It stands around Ha.demote.
    """
    running = threading.Lock()

    @functools.wraps(demote)
    def demote_once(self, mode):
        if mode != 'offline':
            return demote(self, mode)
        if not running.acquire(blocking=False):
            return None
        try:
            return demote(self, mode)
        finally:
            running.release()
    return demote_once


def main():
    """Runs Patroni with the arguments of this process."""
    # Python puts the script's folder first; that is the node's data directory.
    del sys.path[0]
    from patroni.__main__ import main as patroni
    from patroni.version import __version__ as version
    mended = mend(version)
    if mended:
        print('Patroni {0}, mended: {1}'.format(version, ', '.join(mended)), file=sys.stderr)
    # The name under which a process started by Patroni's own script is seen.
    with contextlib.suppress(OSError), open('/proc/self/comm', 'w') as comm:
        comm.write('patroni')
    return patroni()


# Patroni starts PostgreSQL from a second Python, which loads this file as well.
if __name__ == '__main__':
    sys.exit(main())
