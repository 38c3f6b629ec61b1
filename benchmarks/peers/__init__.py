"""What NotiPy is measured against: the same work without a notification system, and by Celery.

Both peers store an event and a delivery, publish a work order, claim the attempt, render, send by SMTP and record the
outcome; nothing of it is done twice for one event that arrives once, and a process that is killed loses nothing. What
NotiPy does besides (validation, a catalog, states with reasons, retries by tier, dead letters, statuses, a sweeper,
metrics) they do not do.

Both are run as `python -m benchmarks.peers.floor` or `….celery_peer` with `--amqp URL --mongo URL --smtp HOST:PORT`,
end on SIGTERM with exit code 0, and offer the harness `prepare`, `feeder` and `publish`.
"""
