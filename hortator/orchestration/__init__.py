"""Teams of agents: one request becomes a durable tree of tasks. Doors come to `teams.Teams`; `docs/orchestration.md` explains the room."""
