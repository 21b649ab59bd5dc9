"""A Celery application whose broker and results are the stack's Redis."""

from celery import Celery

from stack import credentials

where = credentials["redis"]
url = f"redis://{where['user']}:{where['password']}@{where['host']}:{where['port']}/1"
app = Celery("clients", broker=url, backend=url)
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="clients", worker_prefetch_multiplier=1)


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def sleep(seconds):
    import time

    time.sleep(seconds)
    return "woke"
