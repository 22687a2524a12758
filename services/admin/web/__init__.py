"""The console: pages in a browser and the REST API, over the same functions as the command line.

- The process: server.py. The checks that every request passes before it reaches a page: request_guard.py. The
  application: app.py, which names every router. A family of pages is one module with its own router and templates.
- The context of every page (the system, the current user, rendering, flash messages): page_context.py.
- The question before what cannot be undone: confirmation.py. Typed values after a session has ended: refill.py.
- Permissions: the dependencies ``Reader``, ``Administrator`` and ``Person`` of page_context.py.
- The settings that mail clients read without a sign-in: client_autoconfig.py.
- The cached status of the system, so that no click waits for a check: status_cache.py.

Pages are rendered on the server and work without JavaScript. Every form is answered by a redirect: kept_pages.py.
"""
