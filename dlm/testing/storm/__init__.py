"""Storms: real daemons and clients, in network namespaces that are cut apart, and every history judged.

``python -m dlm.testing.storm --nodes 5 --seconds 120 --seed 7``. Reading order: ``names``, ``client`` (a process
that locks, converts and writes to guarded registers), ``faults`` (what is done to nodes, clients and the network),
``run`` (all together), judged by ``dlm.testing.linear`` and ``dlm.testing.register``.
"""
