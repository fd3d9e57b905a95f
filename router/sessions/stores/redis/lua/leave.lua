local session, token, changes = find(ARGV[1]), ARGV[2], {}
if session then
  local line = read_line(session)
  if leave(line, token) then put(changes, 'line', line_text(line)) end
  if session.holder == token then put_release(changes) end
  write(changes)
end
return {'left'}
