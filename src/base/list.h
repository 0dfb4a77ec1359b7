/* base/list.h - intrusive doubly linked list. A node that is in no list points to itself. */
#pragma once

#include "base/attr.h"

struct list { struct list *prev, *next; };

static inline void list_init(struct list *l) { l->prev = l->next = l; }
static inline bool list_empty(const struct list *l) { return l->next == l; }
static inline void list_add_tail(struct list *head, struct list *n) { n->prev = head->prev; n->next = head; head->prev->next = n; head->prev = n; }
static inline void list_add_head(struct list *head, struct list *n) { n->next = head->next; n->prev = head; head->next->prev = n; head->next = n; }
static inline void list_del(struct list *n) { n->prev->next = n->next; n->next->prev = n->prev; list_init(n); }
#define list_entry(ptr, type, member) container_of(ptr, type, member)
#define list_first(head, type, member) list_entry((head)->next, type, member)
/* `it` may be removed inside the body. */
#define list_foreach(it, head, type, member)                                                              \
    for (type *it = list_entry((head)->next, type, member), *it##_next_ = list_entry(it->member.next, type, member); \
         &it->member != (head);                                                                            \
         it = it##_next_, it##_next_ = list_entry(it->member.next, type, member))
