"""A bounded cache: columns of a video that grows leave it by a policy, which is any method of ``methods/eviction.py``.

``memory`` decides and takes out, ``limits`` reads ``tokens=``, ``memory=`` and ``window=``, ``ledger`` knows what every
column is, ``closing`` lets the template's closing tokens look at the cache, ``recall`` keeps what left in main memory,
``shift`` moves all positions by one constant, ``held`` takes columns out of a ``HoldCache``.
"""
