"""The service's database (SQL), and the in-memory read model that requests use.

store.py opens a database and runs transactions. tenants.py, devices.py, keys.py and the others hold
one function for each verb; command line and HTTP share them. directory.py is the read model.
"""
