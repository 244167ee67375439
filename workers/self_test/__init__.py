"""The self test of `olivepress doctor`: a tiny checkpoint becomes an int4 model and answers, by a worker's own means.

`python -m workers.self_test` is the program (olivepress.own_process): it starts a forkserver as a worker does and runs
steps in children of it. The modules beside it are those steps, the real ones but for the checkpoint and the chat.
"""
