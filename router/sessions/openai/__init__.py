"""OpenAI's Responses and Conversations over chat completions. Pure: ids and times are handed in.

input → messages, tools      what a client sends  → chat messages and members of a chat body
chat → answer → output       a whole completion   → the response object, and the message to be kept
       answer → stream       a streamed one       → the same, and its events on the way
items, objects               kept chat messages   → items, lists and conversations
shapes                       the objects that all of these write
values                       strict reading of single members
"""
