"""The console: pages in a browser, and the REST API, over the same functions as the command line.

Who looks for ...
- the process: process.py. What a request passes before it reaches a page: guard.py. The application: app.py, which
  names every router; a page family is one module with a router of its own, and its templates.
- what every page works with (the system, who looks, rendering, what is said on the next page): desk.py.
- who may see and do what: the dependencies ``Reader``, ``Administrator``, ``Person`` of desk.py.
- what is told to mail clients without a sign-in: setting_up.py.
- how the system is known without asking it at every click: watch.py.

Pages are made on the server and work without JavaScript. Whatever changes something is a POST that redirects.
"""
