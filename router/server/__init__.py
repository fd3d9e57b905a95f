"""Towards clients and operators: ``data`` is the data port, ``admin`` the admin port, ``protocol`` a client's connection,
``auth`` and ``key_file`` the API keys, ``page_routes`` the routes whose state the router keeps."""
