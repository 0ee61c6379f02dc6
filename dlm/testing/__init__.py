"""``vsync.testing`` with locks: ``python -m dlm.testing --seed 7``.

Reading order: ``clients`` (what a client process knows and believes), ``rules`` (what must hold, judged from true
time and from the clients' side), ``workload`` (random sessions on every node; a plug-in of the simulator).
"""

from dlm.testing.workload import LockPlugin

__all__ = ["LockPlugin"]
