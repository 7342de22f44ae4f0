"""The rim: pictures, charts and the page of a run. Nothing of the other rooms needs it to search or to choose.

`search`, `final` and `report` use it at their end.
"""
