/* edge/table.h - text keys to embedded nodes: a hash table that grows, with a secret start value, so that nobody can choose keys that share a chain. */
#pragma once

#include "base/list.h"

struct table_node { struct list chain; const char *key; uint64_t hash; };       /* key: the owner's, unchanged while it is in the table */
struct table { struct list *bucket; size_t n_buckets, n; uint64_t seed; };

void table_init(struct table *t);
void table_done(struct table *t);            /* must be empty */
void table_add(struct table *t, struct table_node *n, const char *key);
void table_del(struct table *t, struct table_node *n);
struct table_node *table_find(const struct table *t, const char *key);      /* NULL */
