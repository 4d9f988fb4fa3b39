-- Verbs that few calls need: made only for those, because every call makes its functions anew.

local ROWS = 250
local WHOLE = 1000
local PACED = '~pace/'
local REFUSED = '~refused/'

local function seldom_verbs()
  local more = {}

  local function renew()
    gen = max(gen + 1, mono)
    call('HSET', META, 'gen', gen)
    call('PUBLISH', prefix .. 'bell', string.format('gen %.0f', gen))
  end

  -- A permit of which its client does not know whether it was granted.
  function more.undo(item)
    return undo(item[2])
  end

  function more.hold(item)
    local found = record(item[2])
    if not found then return false end
    write(item[2], found, item[3])
    return true
  end

  function more.withdraw(item)
    for i = 1, #item[2] do
      local of = item[2][i]
      local L = open[names[of[1]]]
      if L and (of[2] > 0 or find(L.rows, item[3], item[4])) then
        if ripe(L, now) then advance(L, now) end
        missed(L, item[3], item[4], of[2], of[3], mono)
        keep(L)
      end
    end
    return true
  end

  function more.doubt(item)
    local which, count = {}, 0
    for i = 1, #item[2] do which[i] = names[item[2][i]] end
    if #which == 0 then which = call('SMEMBERS', LEDGERS) end
    for w = 1, #which do
      local L = fetch(which[w])
      if L then
        doubt(L, now)
        keep(L)
        count = count + 1
      elseif #item[2] == 0 then
        call('SREM', LEDGERS, which[w])
      end
    end
    return count
  end

  local function lost_of(name)
    return string.format('lost:%.0f:%s', epoch, name)
  end

  -- Put a copy back. What was in flight in it and has no record here is held under a permit of its own until its holders
  -- `regain` it or a lease has passed. What was taken and spent here since the epoch began is so in the copy too.
  function more.put(item)
    local name = names[item[2]]
    local old, L = open[name], load(ARGV[2 + item[3]])
    local kin = old and old.born == L.born
    if kin and old.root >= L.seq then return false end
    L.name = name
    call('SADD', LEDGERS, name)
    if ripe(L, now) then advance(L, now) end
    local permit = lost_of(name)
    local before = record(permit)
    before = before and before[5] or 0
    local root, base, rooted = L.seq, entered(L), kin and old.rooted or 0
    local apart = max(0, L.inflight - rooted)
    if old then
      if ripe(old, now) then advance(old, now) end
      L.inflight = apart + old.inflight - before
      if L.kind == FIRST and L.begun == 0 and L.inflight > 0 then L.begun = mono end
      place(L)
      local since = entered(old) - (kin and old.base or 0)
      if since > 0 then settle(L, 0, since, now) end
      L.seq = max(L.seq, old.seq)
    end
    L.epoch, L.root, L.base, L.rooted = epoch, root, base, rooted
    if apart > 0 then
      write(permit, {1, '', 0, name, apart}, mono + LEASE)
    elseif before > 0 then
      write(permit, false)
    end
    place(L)
    keep(L)
    return true
  end

  function more.adopt(item)
    if record(item[2]) then return false end
    local sent = {mono = item[5][1], lo = item[5][2], hi = item[5][3]}
    for c = 1, #item[4] do
      local charge = item[4][c]
      local L = current(charge[1], charge[2], sent)
      take(L, charge[3] * item[3], item[6], item[7], sent.mono)
      keep(L)
    end
    add(item[2], item[3], item[4], item[6], item[7], item[8])
    return true
  end

  -- A permit whose record was lost: its units are moved from what was put back, where they are, or taken.
  function more.regain(item)
    if record(item[2]) then return false end
    for c = 1, #item[4] do
      local charge = item[4][c]
      local units = charge[3] * item[3]
      local L = current(charge[1], charge[2], now)
      local permit = lost_of(L.name)
      local there = record(permit)
      local moved = there and min(there[5], units) or 0
      if moved > 0 then
        there[5] = there[5] - moved
        write(permit, there[5] > 0 and there)
        L.rooted = L.rooted + moved
      end
      if units > moved then take(L, units - moved, item[5], item[6], mono) end
      keep(L)
    end
    add(item[2], item[3], item[4], item[5], item[6], item[7])
    return true
  end

  function more.spent(item)
    local at = {mono = item[3][1], lo = item[3][2], hi = item[3][3]}
    for c = 1, #item[2] do
      local L = current(item[2][c][1], item[2][c][2], now)
      local units = item[2][c][3]
      L.inflight, L.room = L.inflight + units, L.room - units
      lapse(L, units, at, now)
      keep(L)
    end
    return true
  end

  local function field(state)
    return pack({state[1], state[2]})
  end

  -- Where it is noted until when blocks of a kind were removed from a scope: a client may still know one of them.
  local function ended_field(item)
    return 'ended:' .. field({item[2], item[3]})
  end

  function more.block(item)
    local length = item[5]
    local begun = item[6] and min(item[6], mono) or mono
    local state = {item[2], item[3], item[4], length and min(max(length, 0), LONGEST) or false, begun}
    local ended = item[7] and tonumber(call('HGET', META, ended_field(item)) or -1)
    if ended and ended >= begun then return {item[2], item[3], item[4], 0, begun} end
    if item[6] and not item[7] then call('HDEL', META, ended_field(item)) end
    local old = call('HGET', BLOCKS, field(state))
    old = old and unpacked(old)
    renew()
    if old and block_ends(old) >= block_ends(state) then return old end
    local all = call('HVALS', BLOCKS)
    shut = block_ends(state)
    for i = 1, #all do
      local other = unpacked(all[i])
      if block_ends(other) <= mono then call('HDEL', BLOCKS, field(other)) else shut = max(shut, block_ends(other)) end
    end
    call('HSET', BLOCKS, field(state), pack(state))
    call('HSET', META, 'shut', shut)
    return state
  end

  function more.unblock(item)
    local all, gone = call('HVALS', BLOCKS), false
    local at = item[4] == true and mono or item[4]
    if at then
      local ended = tonumber(call('HGET', META, ended_field(item)) or 0)
      call('HSET', META, ended_field(item), max(at, ended))
    end
    for i = 1, #all do
      local state = unpacked(all[i])
      local older = not at or item[4] == true or state[5] <= at
      if state[1] == item[2] and (item[3] == '' or state[2] == item[3]) and older then
        call('HDEL', BLOCKS, field(state))
        gone = true
      end
    end
    if gone then renew() end
    return gone
  end

  -- Take out the rows that no call needs, as `LedgerStore._pruned`, when there are many and they have doubled.
  local function prune(known, fresh)
    local count, left = 0, 0
    for _ in pairs(known) do count = count + 1 end
    if count <= tonumber(call('HGET', META, 'rows') or ROWS) then return false end
    for name, numbers_of in pairs(known) do
      local ledger = string.sub(name, 1, #PACED) == PACED and string.sub(name, #PACED + 1) or name
      local gone
      if string.sub(name, 1, #REFUSED) == REFUSED then
        gone = numbers_of[2] <= mono
      elseif ledger ~= name and numbers_of[1] >= WHOLE then
        gone = true
      else
        gone = string.find(ledger, '/', 1, true) and not call('GET', home .. string.sub(prefix, 5, -3) .. '/' .. ledger)
      end
      if gone and not fresh[name] then known[name] = nil else left = left + 1 end
    end
    call('HSET', META, 'rows', max(ROWS, 2 * left))
    return true
  end

  function more.learn(item)
    local known = call('HGET', META, 'learned')
    known = known and unpacked(known) or {}
    local news = false
    for name, numbers_of in pairs(item[2]) do
      local old = known[name]
      if not old or old[1] ~= numbers_of[1] or old[2] ~= numbers_of[2] then
        known[name] = numbers_of
        news = true
      end
    end
    if news then
      local pruned = prune(known, item[2])
      call('HSET', META, 'learned', pack(known))
      renew()
      if pruned then call('HSET', META, 'gen', gen + 1) end  -- so that this client reads them again, too
    end
    return news
  end

  -- Write a note, or take it out, if it still is what the client took it for.
  function more.swap(item)
    local key = prefix .. 'N:' .. item[2]
    local before = item[3]
    if before ~= true then
      local there = call('GET', key)
      if there ~= (before and ARGV[2 + before] or false) then
        if not there then return {false, false} end
        reply[#reply + 1] = there
        return {false, #reply - 1}
      end
    end
    if not item[4] then
      call('DEL', key)
    elseif item[5] then
      call('SET', key, ARGV[2 + item[4]], 'PX', item[5])
    else
      call('SET', key, ARGV[2 + item[4]])
    end
    return {true, false}
  end

  function more.note(item)
    local there = call('GET', prefix .. 'N:' .. item[2])
    if not there then return false end
    reply[#reply + 1] = there
    return #reply - 1
  end

  function more.beat(item)
    call('ZADD', MEMBERS, mono + item[3], item[2])
    return_share(item[2])
    if gather > mono then
      local back = call('HGET', META, 'back')
      back = back and unpacked(back) or {}
      back[item[2]] = true
      local count = 0
      for _ in pairs(back) do count = count + 1 end
      call('HSET', META, 'back', pack(back))
      if count >= tonumber(call('HGET', META, 'expected') or 1) then
        gather, lost = 0, -1
        call('HSET', META, 'gather', 0, 'lost', -1)
        call('PUBLISH', prefix .. 'bell', 'all')
      end
    end
    return call('ZCARD', MEMBERS)
  end

  function more.leave(item)
    local member = item[2]
    if item[3] then
      -- It began to use its share MARGIN after others had to hold it, if it lived that long.
      local unused = call('ZRANGEBYSCORE', MEMBERS, mono - MARGIN, '+inf')
      for u = 1, #unused do
        if unused[u] == member then return_share(member) end
      end
      local all = call('HGETALL', HELD)
      for a = 1, #all, 2 do
        if unpacked(all[a + 1])[2] == member and record(all[a]) then lapse_permit(all[a], now) end
      end
    else
      return_share(member)
    end
    forget_member(member)
    return true
  end

  return more
end
