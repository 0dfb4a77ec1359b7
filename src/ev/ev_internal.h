/* ev/ev_internal.h - what ev.c and ev_proc.c share. */
#pragma once

struct ev;
struct ev_signals;

struct ev_signals **ev_signals_place(struct ev *ev);    /* where the loop keeps its signal table; NULL until ev_signal() */
void ev_signals_free(struct ev_signals *s);
