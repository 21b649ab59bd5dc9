// Package redis runs clients that nobody here wrote through redisproxy, on a
// real Redis Cluster, as applications use them: redis-py, node-redis, go-redis,
// kombu and Celery. docs/redis.md says what works and what is refused.
package redis
