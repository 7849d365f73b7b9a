"""Typed values and entities, as both faces use them.

=============  ================================================================================
module         holds
=============  ================================================================================
``codecs``     values as bytes and back
``typed``      a store that reads and writes values of one type, nothing cached
``loader``     the entities under a path in memory: loading and following
``handle``     an entity that is held, through which it is changed, and commits of several
``records``    the entities between the store and the cache
``cache``      what a loader knows, without I/O
=============  ================================================================================
"""
