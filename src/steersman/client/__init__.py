"""Talk to a steersman server from Python.

client.py, async_client.py     `Client` and `AsyncClient`
answers.py, recipes.py, sets.py, jobs.py, features.py     paths and bodies, each written once; methods.py gives them to both
facts.py, feature_facts.py     what the server answers, as frozen data
flow.py        what is done for one answer: ask, read, try again; no sockets
steps.py, refusals.py          what flows are made of; what went wrong, in words
streaming.py   server-sent events from bytes
transport.py   the two drivers (threads and asyncio) that carry flows out over HTTP; target.py: address, key, patience
"""
