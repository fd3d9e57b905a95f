"""OpenAI's Responses and Conversations over chat completions. Pure: ids and times are passed in.
``sessions.api`` has the routes.

input → messages, tools      a client's request     → chat messages and members of a chat body
answer → output              a whole completion     → the response, and the message for the log
answer → stream              a streamed completion  → the same, and its events
chat_answers                 both, for clients of chat completions
items, objects               the log's messages     → items, lists and conversations
shapes                       the objects of the API
values                       strict reading of single members
"""
