"""Benchmarks that anyone can run: ``vsync bench …``. Each prints what it measured and how, and nothing else.

``view_change``: how long a failure takes to become a view; of ``local`` daemons, and of ``corosync`` when it is
installed.
"""
