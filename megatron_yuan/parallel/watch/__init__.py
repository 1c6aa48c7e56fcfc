"""Who stands still, who is gone: heartbeats of all ranks, a verdict that names the culprit, and an end for everybody.

pulse.py     what the training thread says of itself: step, phase, microbatch; one assignment a beat
schedule.py  beats from within megatron-core's schedules
link.py      heartbeats between processes: every rank holds one connection to rank 0
book.py      what one process has heard, by its own clock
verdict.py   from that to the culprit: a pure function
identity.py  which process on which host a rank is
stacks.py    where the threads of this process stand, in a file
ending.py    what follows a verdict: words, stacks, and the end of all processes
watch.py     the thread that publishes, listens and judges
start.py     from the settings and the ranks to a watch
"""
