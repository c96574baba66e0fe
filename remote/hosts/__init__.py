"""Several servers at once: one training on all, a sweep over their queues, the first free one."""
