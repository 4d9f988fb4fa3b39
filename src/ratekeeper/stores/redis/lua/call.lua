-- One call, from its ledgers being read to its answer.

local count = #KEYS - FIXED_KEYS
if count > 0 then
  local raws = call('MGET', unpack(KEYS, FIXED_KEYS + 1))
  for i = 1, count do
    local name = string.sub(KEYS[FIXED_KEYS + i], #home + 1)
    names[i], numbers[name] = name, i
    take_up(name, raws[i])
  end
end

local permits_named, put = {}, {}
for i = 1, #items do
  local verb = items[i][1]
  if verb == 'settle' or verb == 'refund' or verb == 'hold' then
    permits_named[#permits_named + 1] = items[i][2]
  elseif verb == 'put' then
    put[names[items[i][2]]] = true
  end
end

local seen, missing = header.seen or {}, {}
for i = 1, count do
  local L = open[names[i]]
  if not put[names[i]] and (L and L.seq or 0) < (seen[i] or 0) then missing[#missing + 1] = i end
end
if #missing > 0 then
  begin_epoch(true)
  return {pack({'lost', mono, gen, missing, epoch})}
end

-- Hold the share of whoever goes on without the server: as much as it may take by itself.
silent = call('ZRANGEBYSCORE', MEMBERS, '-inf', mono, 'LIMIT', 0, 20)
if #silent > 0 then members = max(2, call('ZCARD', MEMBERS)) end
for _, member in ipairs(silent) do
  local permit = AWAY .. member
  if not record(permit) then
    local found = {1, member, 0}
    for _, name in ipairs(call('SMEMBERS', LEDGERS)) do
      local L = fetch(name)
      if L then
        if ripe(L, now) then advance(L, now) end
        hold_share(found, L)
        keep(L)
      else
        call('SREM', LEDGERS, name)
      end
    end
    write(permit, found, mono + LEASE)
  end
end

-- Count as spent what was in flight when its lease ended: its holder is gone, the request may have arrived.
do
  local due = call('ZRANGEBYSCORE', PERMITS, '-inf', mono, 'WITHSCORES', 'LIMIT', 0, 100)
  for d = 1, #due, 2 do
    local permit, lease = due[d], tonumber(due[d + 1])
    local past = mono - lease
    local at = {mono = lease, lo = now.lo - past, hi = now.hi - past}
    local found = record(permit)
    local member = string.sub(permit, 1, #AWAY) == AWAY and string.sub(permit, #AWAY + 1)
    if member and mono - tonumber(call('ZSCORE', MEMBERS, member) or 0) < LONG_GONE then
      write(permit, found, mono + LEASE)  -- nobody knows whether it still goes on by itself
    elseif member then
      undo(permit)
      forget_member(member)
    else
      lapse_permit(permit, at)
    end
  end
end

for first = 1, #permits_named, 1000 do
  local last = min(first + 999, #permits_named)
  local found = call('HMGET', HELD, unpack(permits_named, first, last))
  for p = first, last do
    local permit, raw = permits_named[p], found[p - first + 1]
    if held[permit] == nil then held[permit] = raw and unpacked(raw) end
  end
end

local results = {}
local more
for i = 1, #items do
  local item = items[i]
  local verb = item[1]
  if verb == 'reserve' then
    results[i] = reserve(item)
  elseif verb == 'settle' then
    results[i] = settle_permit(item)
  elseif verb == 'refund' then
    results[i] = refund_permit(item)
  else
    more = more or seldom_verbs()
    results[i] = more[verb](item)
  end
end

local function many(command, key, arguments)
  for first = 1, #arguments, 1000 do
    call(command, key, unpack(arguments, first, min(first + 999, #arguments)))
  end
end

local put_in, take_out, ends_at = {}, {}, {}
for permit in pairs(changed) do
  local found = held[permit]
  if found then
    put_in[#put_in + 1], put_in[#put_in + 2] = permit, pack(found)
    if leases[permit] then ends_at[#ends_at + 1], ends_at[#ends_at + 2] = leases[permit], permit end
  else
    take_out[#take_out + 1] = permit
  end
end
many('HSET', HELD, put_in)
many('ZADD', PERMITS, ends_at)
many('HDEL', HELD, take_out)
many('ZREM', PERMITS, take_out)

local copies = {}
for w = 1, #written do
  local name = written[w]
  local L = open[name]
  local copy = dump(L)
  call('SET', home .. name, copy, 'PX', IDLE + floor(4 * L.period / 1000))
  if numbers[name] then
    reply[#reply + 1] = copy
    copies[#copies + 1], copies[#copies + 2], copies[#copies + 3] = numbers[name], L.seq, #reply - 1
  end
end
if #bell > 1 then call('PUBLISH', prefix .. 'bell', table.concat(bell, ' ')) end
reply[1] = pack({'ok', mono, gen, results, copies, epoch})
return reply
