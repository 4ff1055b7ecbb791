"""One HTML file that needs nothing else: no network, fonts or foreign hosts.

``equipoise explain report``.
"""
