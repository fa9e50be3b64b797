"""What the service keeps in SQL, and the read model that requests look things up in.

store.py opens a database and runs transactions; tenants.py, devices.py, keys.py and the others hold
one function a verb, which command line and HTTP share; directory.py is read in hot paths.
"""
