local session = find(ARGV[1])
if session and session.fence == number(ARGV[2]) then
  local changes = {}
  put_release(changes)
  write(changes)
end
return {'released'}
