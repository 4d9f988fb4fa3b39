-- The verbs of a store: one call is one atomic step over the ledgers of one namespace. As ratekeeper/stores/verbs.py.
--
-- KEYS  P:meta  P:permits  P:held  P:blocks  P:members  P:ledgers  then one P:L:<ledger key> for each ledger of the call.
--       P begins with {..} or holds it, so that all lie in one hash slot. "Ledger i" is the i-th of them, from 1.
-- ARGV  1 header, 2 items: msgpack without floats and bin; nil may stand for false. 3..: blobs, any bytes, counted from 1.
-- header (map)
--   now      us, for tests; else the server's TIME
--   dlo, dhi the provider's clock lies in [now + dlo, now + dhi], us
--   gen      the generation of blocks and learned limits that the client knows; absent: do not ask
--   limits   list of {kind, capacity, headroom, period, refill, origin} in force; items name them from 1
--   seen     list: highest seq of ledger i that the client has seen; 0: none
--   epoch    the epoch that the client knows; absent: none yet, it holds nothing
--   hello    true over a new connection: it may lead to another server
--   away     true: the client went on without the server
--   members  how many the client knew of
--   restored true: this call brings all that the client holds
-- items: each is a list that begins with its verb
--   reserve charges {{i, limit, cost}..} scopes member class backlog ahead weight lease(us) permit lane most part
--           wanted
--           backlog {i: units}, nil: will not wait; ahead {i: units}; lane 0: none; part: see `most_of`;
--           wanted: of the permits, so many that calls wait for; they are decided one by one where a limit is nearly full
--           -> {ok, permits, {mark..}} | {no, i or scope, available_at, unknown, never, kind, reason} | {skip}
--   settle  permit permits {{i, limit, reserved, actual, used or nil, mark, full}..} {mono, lo, hi} member
--           stated left
--           -> {held, {released i..}, {member to wake..}, {i, foreign..}}
--   refund  permit permits {{i, limit, units}..} member class left  -> {held, {released i..}, {member to wake..}}
--           left: so many permits of the record were to end later when this was first told; nil: 0. Told twice, it ends once
--   hold    permit until                       -> bool     withdraw {{i, missed, left}..} member class -> true
--   doubt   {i..}; none: all of the namespace  -> count    put i blob                        -> bool
--   adopt   permit permits {{i, limit, cost}..} {mono, lo, hi} member class until            -> true
--   regain  permit permits {{i, limit, cost}..} member class until                           -> bool
--   spent   {{i, limit, actual}..} {mono, lo, hi}                                            -> true
--   block   scope kind reason length(us) or nil, at(us) or nil, again -> {scope, kind, reason, length or false, at}, the one
--           in force; at: when it began, nil: now; again: the client brings back one that it knows, which may have been
--           removed since `at`: then its length is 0
--   unblock scope kind ('': all) at(us), true (now) or nil -> bool
--           at: removes only what had begun then (true: all), and nobody brings that back
--   learn   {name: {capacity, period}}         -> bool
--   swap    topic before after keep(ms)        -> {written?, the blob that stands there if it was not, or false}
--           before: what the client takes it for, a blob or nil (no note); true: whatever it is. after: blob or nil
--   note    topic                              -> its blob, or false
--   beat    member ttl(us)                     -> members there are
--           Who is not heard of again within ttl goes on without the server, or is dead: its share of every ledger is held
--           under the permit `away:<member>`, until it is back, or has left, or ten minutes have passed
--   leave   member dead                        -> true; dead: its permits end now and count as spent, and so does its share if
--           it may have used it
--   undo    permit                             -> bool: was it held? all of it was refunded
-- reply   a list of strings: msgpack of one of the following, then blobs (bytes as they lie in the server), from 1
--         {'ok', now, gen, {result..}, {i, seq, blob, .. of every ledger written}, epoch}
--         {'stale', now, gen, {block..}, learned or false}: nothing was done; the client takes them in and repeats
--         {'lost', now, gen, {i..}, epoch}: nothing was done; a new epoch has begun. It repeats the call, `restored`, with
--         its copies put first and its permits regained
-- An epoch begins when the server may know less than its clients: it lost its memory, another took its place, or they went
-- on without it. Until all of them have brought what they hold (or did not come within GATHER), nothing is granted.
-- P:bell  'epoch', 'wake <member> ..' to whom there is something for; 'gen <number>' when blocks or learned limits changed
-- P:permits score: end of the lease, us. P:held: permit -> {permits, member, class, ledger key, units, ..}

local SECOND = 1000000
local LOOK = SECOND
local GRACE = 200000
local LEASE = 60 * SECOND
local HARSH = 300 * SECOND
local GATHER = SECOND
local AWAY = 'away:'
local LONG_GONE = 600 * SECOND
local GLANCE = SECOND / 50
local LONGEST = 7 * 86400 * SECOND
local MARGIN = SECOND / 4
local NAMED = 8 * 86400 * 1000
local CANCEL = '/class:cancel'
local IDLE = 4 * 3600 * 1000
local call = redis.call
local pack, unpacked = cmsgpack.pack, cmsgpack.unpack

local header, items = unpacked(ARGV[1]), unpacked(ARGV[2])
local META, PERMITS, HELD, BLOCKS, MEMBERS, LEDGERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local FIXED_KEYS = 6
local prefix = string.sub(META, 1, -5)
local home = prefix .. 'L:'
local limits = header.limits or {}

local mono = header.now
if not mono then
  local t = call('TIME')
  mono = tonumber(t[1]) * SECOND + tonumber(t[2])
end
local now = {mono = mono, lo = mono + header.dlo, hi = mono + header.dhi}

local meta = call('HMGET', META, 'gen', 'lost', 'shut', 'epoch', 'gather', 'run')
local gen, lost, shut = tonumber(meta[1] or 0), tonumber(meta[2] or -1), tonumber(meta[3] or 0)
local epoch, gather = tonumber(meta[4] or 0), tonumber(meta[5] or 0)

-- The server may know less than its clients do; where it is `blank`, nothing at all of what they do not put back.
local function begin_epoch(blank)
  if gather <= mono then
    epoch, gather = max(max(epoch, header.epoch or 0) + 1, mono), mono + GATHER
    call('HSET', META, 'epoch', epoch, 'gather', gather, 'expected', header.members or 1)
    call('HDEL', META, 'back')
    call('PUBLISH', prefix .. 'bell', 'epoch')
  end
  if blank then
    lost = mono
    call('HSET', META, 'lost', mono)
  end
end

if header.hello then
  local run = string.match(call('INFO', 'server'), 'run_id:(%w+)')
  if meta[6] ~= run then
    call('HSET', META, 'run', run)
    if meta[6] or header.epoch then begin_epoch(true) end
  end
end
if header.away then begin_epoch(false) end
if header.epoch and header.epoch ~= epoch and not header.restored then
  if header.epoch > epoch then begin_epoch(true) end
  return {pack({'lost', mono, gen, {}, epoch})}
end

if header.gen and header.gen ~= gen then
  local blocks = call('HVALS', BLOCKS)
  for i = 1, #blocks do blocks[i] = unpacked(blocks[i]) end
  local learned = call('HGET', META, 'learned')
  return {pack({'stale', mono, gen, blocks, learned and unpacked(learned)})}
end

-- -- ledgers: read once, written once ---------------------------------------------------------------------------------

local names, numbers, open, written, reply = {}, {}, {}, {}, {''}

-- A ledger begins. For each, the list of ledgers loses some of those whose keys have expired.
local function begun(name)
  call('SADD', LEDGERS, name)
  local some = redis.pcall('SRANDMEMBER', LEDGERS, 3)  -- a user with few rights may not be allowed to
  for s = 1, #some do
    if not open[some[s]] and not call('GET', home .. some[s]) then call('SREM', LEDGERS, some[s]) end
  end
end

local function keep(L)
  open[L.name] = L
  if not L.dirty then
    L.dirty = true
    L.seq = L.seq + 1
    if L.seq == 1 then begun(L.name) end
    written[#written + 1] = L.name
  end
end

-- A ledger as it lies here; the first to read it in an epoch remembers how it stood when that began.
local function take_up(name, raw)
  local L = raw and load(raw)
  if L then
    L.name = name
    if L.epoch ~= epoch then L.epoch, L.root, L.rooted, L.base = epoch, L.seq, L.inflight, entered(L) end
  end
  open[name] = L
  return L
end

local function fetch(name)
  local L = open[name]
  if L == nil then L = take_up(name, call('GET', home .. name)) end
  return L
end

local held, leases, changed = {}, {}, {}

local function record(permit)
  local found = held[permit]
  if found == nil then
    found = call('HGET', HELD, permit)
    found = found and unpacked(found)
    held[permit] = found
  end
  return found
end

local function write(permit, found, lease)
  held[permit] = found
  changed[permit] = true
  leases[permit] = lease or leases[permit]
end

local silent, members = {}, 2

-- Hold a share of a ledger for a member that goes on without the server.
local function hold_share(found, L)
  local units = floor(L.usable / members)
  occupy(L, units, mono)
  for r = 4, #found, 2 do
    if found[r] == L.name then return end
  end
  found[#found + 1], found[#found + 2] = L.name, units
end

-- A ledger begins. If the server lost its memory, units were spent on it, nobody knows how many.
local function fresh(L)
  for _, member in ipairs(silent) do
    local found = record(AWAY .. member)
    if found then
      hold_share(found, L)
      write(AWAY .. member, found)
    end
  end
  if lost >= 0 and L.period ~= 0 and mono - lost < L.period then
    if L.period <= HARSH then fill(L, now) else settle(L, 0, floor(L.usable / 2), now) end
  end
end

local function current(i, limit, at)
  local name = names[i]
  local L = open[name]
  limit = limits[limit]
  if not L then
    L = create(limit)
    L.name, L.born, L.epoch = name, mono, epoch
    advance(L, at)
    fresh(L)
    return L
  end
  if L.kind ~= limit[1] or L.capacity ~= limit[2] or L.headroom ~= limit[3] or L.period ~= limit[4]
    or L.refill ~= limit[5] or L.origin ~= limit[6] then
    L = convert(L, limit, at)
  end
  if ripe(L, at) then advance(L, at) end
  return L
end

-- -- permits ----------------------------------------------------------------------------------------------------------

-- Take `permits` out of a permit's record, in which `left` stay; false if its lease had ended, or that was done before.
local function drop(permit, permits, parts, left)
  local found = record(permit)
  if not found or found[1] < permits + (left or 0) then return false end
  if found[1] == permits then
    write(permit, false)
    return true
  end
  found[1] = found[1] - permits
  for p = 1, #parts do
    local name = names[parts[p][1]]
    for r = 4, #found, 2 do
      if found[r] == name then found[r + 1] = found[r + 1] - parts[p][3] end
    end
  end
  write(permit, found)
  return true
end

local function add(permit, permits, charges, member, class, lease)
  local found = {permits, member, class}
  for c = 1, #charges do
    found[#found + 1] = names[charges[c][1]]
    found[#found + 1] = charges[c][3] * permits
  end
  write(permit, found, lease)
end

local bell, rung = {'wake'}, {}

-- Whom of the other members a ledger with more room is good for.
local function waiting(L, member, wake)
  local rows = L.rows
  for r = 1, #rows, ROW do
    local other = rows[r]
    if rows[r + WAITING] ~= 0 and other ~= member and rows[r + UNTIL] > mono then
      wake[other] = true
      if not rung[other] then
        rung[other] = true
        bell[#bell + 1] = other
      end
    end
  end
end

local function listed(set)
  local list = {}
  for one in pairs(set) do list[#list + 1] = one end
  return list
end

-- -- blocks -----------------------------------------------------------------------------------------------------------

local function block_ends(state)
  return state[4] and state[5] + state[4] or FAR
end

local function of_cancels(scope)
  return string.sub(scope, -#CANCEL) == CANCEL
end

-- The block that holds a call longest, if any does. What holds for all providers the client has looked at.
local function against(scopes, charges)
  local all, mine, worst, cancel = call('HVALS', BLOCKS), {}, nil, false
  for s = 1, #scopes do
    mine[scopes[s]] = true
    cancel = cancel or of_cancels(scopes[s])
  end
  for c = 1, #charges do mine[names[charges[c][1]]] = true end
  for b = 1, #all do
    local state = unpacked(all[b])
    local over = block_ends(state)
    local sparing = state[2] == 'pause' or state[2] == 'breaker'
    local spared = sparing and (mine['emergency'] or cancel and not of_cancels(state[1]))
    if mine[state[1]] and not spared and over > mono and (not worst or over > block_ends(worst)) then worst = state end
  end
  if worst then return {'no', worst[1], block_ends(worst), not worst[4], false, worst[2], worst[3]} end
end

-- -- verbs ------------------------------------------------------------------------------------------------------------

-- How many permits at once fit without a closer look, of which all take at most one `part`-th of what is free.
local function most_of(most, part, charges, ledgers, ahead, member, class)
  if next(ahead) then return 1 end
  for c = 1, #charges do
    local cost, L = charges[c][3], ledgers[c]
    if L.kind == SLOTS or L.floor == FAR then return 1 end
    if cost > 0 then most = min(most, floor(L.room / (part * cost)), floor((L.room - L.floor) / cost)) end
    -- What is kept for classes above the caller's is kept from all of them together.
    while class > L.calm and most > 1 and available_at(L, most * cost, member, class, now, 0) ~= 0 do most = floor(most / 2) end
  end
  return max(1, most)
end

local refused_lanes, none = {}, {}

local function reserve(item)
  if gather > mono then
    local charges, scopes = item[2], item[3]
    return {'no', charges[1] and charges[1][1] or scopes[1] or '', min(gather, mono + GLANCE), true, false, 'limit', ''}
  end
  local charges, scopes, member, class, backlog, ahead = item[2], item[3], item[4], item[5], item[6], item[7] or none
  local weight, lease, permit, lane, most, part = item[8], item[9], item[10], item[11] or 0, item[12] or 1, item[13] or 64
  if refused_lanes[lane] then return {'skip'} end
  local no = shut > mono and against(scopes, charges)
  if no then
    if lane ~= 0 then refused_lanes[lane] = true end
    return no
  end
  local ledgers, short, opens_at, unknown, worst = {}, {}, {}, false, nil
  local look_closer = next(ahead)
  for c = 1, #charges do ledgers[c] = current(charges[c][1], charges[c][2], now) end
  for c = 1, #charges do
    local i, cost, L = charges[c][1], charges[c][3], ledgers[c]
    if look_closer or L.room - cost < L.floor or class > L.calm then
      local at = available_at(L, cost, member, class, now, ahead[i] or 0)
      if at == NEVER then return {'no', i, 0, false, true, 'limit', ''} end
      if at ~= 0 then
        if at < 0 then at, unknown = at < NEVER and min(mono + LOOK, -at) or mono + LOOK, true end
        short[#short + 1], opens_at[#opens_at + 1] = c, at
        if not worst or at > opens_at[worst] then worst = #short end
      end
    end
  end
  if not worst then
    local permits = most > 1 and most_of(most, part, charges, ledgers, ahead, member, class) or 1
    local marks = {}
    for c = 1, #charges do
      local L = ledgers[c]
      take(L, charges[c][3] * permits, member, class, mono)
      keep(L)
    end
    local wanted = item[14] or 1
    while permits < wanted do
      for c = 1, #charges do
        local i, cost, L = charges[c][1], charges[c][3], ledgers[c]
        if (look_closer or L.room - cost < L.floor or class > L.calm) and available_at(L, cost, member, class, now, ahead[i] or 0) ~= 0 then
          wanted = permits
          break
        end
      end
      if permits < wanted then
        for c = 1, #charges do take(ledgers[c], charges[c][3], member, class, mono) end
        permits = permits + 1
      end
    end
    for c = 1, #charges do marks[c] = ledgers[c].tally end
    add(permit, permits, charges, member, class, mono + lease)
    return {'ok', permits, marks}
  end
  if backlog then
    for s = 1, #short do
      local charge, L = charges[short[s]], ledgers[short[s]]
      refused(L, member, class, charge[3], max(backlog[charge[1]] or 0, charge[3]), opens_at[s] + GRACE, weight)
      keep(L)
    end
  end
  if lane ~= 0 then refused_lanes[lane] = true end
  return {'no', charges[short[worst]][1], opens_at[worst], unknown, false, 'limit', ''}
end

-- Write a ledger, and note whom it is good for that it has more room.
local function noted(i, L, before, member, released, wake)
  if L.room > before then
    released[#released + 1] = i
    waiting(L, member, wake)
  end
  keep(L)
end

local function settle_permit(item)
  local permit, permits, parts, sent, member = item[2], item[3], item[4], item[5], item[6]
  local whose = record(permit)
  local was_held = drop(permit, permits, parts, item[8])
  sent = {mono = sent[1], lo = sent[2], hi = sent[3]}
  local released, wake, foreign = {}, {}, {}
  for p = 1, #parts do
    local part = parts[p]
    local i, reserved, actual = part[1], part[3], part[4]
    local L = current(i, part[2], now)
    local before = L.room
    if was_held then
      settle(L, reserved, actual, now)
      if L.kind == SLOTS then returned(L, whose[2], whose[3], reserved, now.mono, true) end
    end
    if part[5] and (was_held or now.mono - sent.mono <= L.period) then
      local others = observe(L, part[5], sent, part[6], reserved, actual, now)
      if others ~= 0 then foreign[#foreign + 1], foreign[#foreign + 2] = i, others end
    end
    if part[7] then overrun(L, sent, now, item[7]) elseif L.trial ~= 0 then confirm(L, sent) end
    noted(i, L, before, member, released, wake)
  end
  return {was_held, released, listed(wake), foreign}
end

local function refund_permit(item)
  local permit, permits, parts, member, class = item[2], item[3], item[4], item[5], item[6]
  if not drop(permit, permits, parts, item[7]) then return {false, {}, {}} end
  local released, wake = {}, {}
  for p = 1, #parts do
    local i, units = parts[p][1], parts[p][3]
    local L = current(i, parts[p][2], now)
    local before = L.room
    refund(L, units)
    returned(L, member, class, units, now.mono, false)
    noted(i, L, before, member, released, wake)
  end
  return {true, released, listed(wake)}
end

-- Refund all of a permit, whatever it holds.
local function undo(permit)
  local found = record(permit)
  if not found then return false end
  for r = 4, #found, 2 do
    local L = fetch(found[r])
    if L then
      if ripe(L, now) then advance(L, now) end
      refund(L, found[r + 1])
      if L.kind == SLOTS then returned(L, found[2], found[3], found[r + 1], mono, true) end
      keep(L)
      waiting(L, '', {})
    end
  end
  write(permit, false)
  return true
end

local function return_share(member)
  undo(AWAY .. member)
end

-- Count all of a permit as spent by `at`.
local function lapse_permit(permit, at)
  local found = record(permit)
  for r = 4, found and #found or 0, 2 do
    local L = fetch(found[r])
    if L then
      if ripe(L, now) then advance(L, now) end
      local before = L.room
      lapse(L, found[r + 1], at, now)
      keep(L)
      if L.room > before then waiting(L, '', {}) end
    end
  end
  write(permit, false)
end

-- A member that is gone: its name stays for as long as most windows show what it spent.
local function forget_member(member)
  call('ZREM', MEMBERS, member)
  local key = prefix .. 'N:member:' .. member
  local name = call('GET', key)
  if name then call('SET', key, name, 'PX', NAMED) end
end
