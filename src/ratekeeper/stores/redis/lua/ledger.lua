-- The arithmetic of limits, number for number as in ratekeeper/ledger: change both together.
--
-- Numbers here are doubles: whole up to 2^53. So instants and periods are microseconds, `share` multiplies without
-- rounding, and a bucket's level is two numbers. Nothing is ever rounded that is not rounded there. An instant more than
-- 200 years ahead is FAR.
--
-- A ledger as it is written (msgpack array; instants in us on the server's clock):
--   1 seq        grows by one with every write: tells which of two copies is newer
--   2 base       `entered` when its epoch began: units that were ever settled in it
--   3 kind       0 fixed, 1 first, 2 sliding, 3 bucket, 4 slots
--   4 capacity   5 headroom   6 period   7 refill   8 origin      the limit in force
--   9 used      10 inflight  11 tally   12 era     13 hot
--  14 own        fixed {carry, late, stamp, foreign, expected, seen, kept, again, kept_until, held,
--                trial, tried, probed, and of its edges lo, hi, doubt, whole, peak, sent, told, mark, shown,
--                and least, loose, finds}; first {begun, anchor, carry, last, owed};
--                sliding {last settle, units, first settle, ... oldest first}; bucket {units, billionths, at}; slots {}
--  15 rows       {member, class, taken, taken before, refused, waiting, head, until, weight, missed, wanted before, burst, since,
--                squares, mean burst, first asked, ... oldest first}; see `Row` in ratekeeper/ledger/shares.py
--  16 born       when it began, us: tells whether two copies descend from one ledger
--  17 epoch      of the server, when it was written; the next are as of when that began, or of the copy put since
--  18 root       seq      19 rooted   units in flight under permits that have a record
--  20 row        length of a row; rows of another length are left out

local FAR = 9007199254740992
local NEVER, UNKNOWN = -2, -1
local FIXED, FIRST, SLIDING, BUCKET, SLOTS = 0, 1, 2, 3, 4
local KEEP_UPPER = 5
local RING = 64
local NANO = 1000000000
local SLOT_ERA = 60000000
local FIRST_DOUBT = 2000000
local BLIND_DOUBT = 250000
local DRIFT = 5000
local LATER = 4096
local BURST = 100000
local SLOT_KEPT = 5000000
local STEEP = 16
local MOST = 4503599627370496
local AGED, CALM = 8, 99
local ROW = 16
local MEMBER, CLASS, TAKEN, BEFORE, FLAGS, WAITING, HEAD, UNTIL, WEIGHT = 0, 1, 2, 3, 4, 5, 6, 7, 8
local MISSED, WANTED, AT_ONCE, SINCE, SQUARES, MEAN, ASKED_AT = 9, 10, 11, 12, 13, 14, 15
local floor, max, min = math.floor, math.max, math.min

-- a * b over c, whole numbers, a and b not negative: quotient and remainder without an error, however large the product.
local function share(a, b, c)
  local product = a * b
  if product < FAR then
    local q = floor(product / c)
    return q, product - q * c
  end
  local q0 = floor(a / c)
  a = a - q0 * c
  local base = 1
  while base * c < FAR / 4 do base = base * 2 end
  local digits, n, rest = {}, 0, b
  while rest > 0 do
    n = n + 1
    digits[n] = rest % base
    rest = floor(rest / base)
  end
  local q, r = 0, 0
  for i = n, 1, -1 do
    local sum = r * base + a * digits[i]
    local part = floor(sum / c)
    q = q * base + part
    r = sum - part * c
  end
  return q0 * b + q, r
end

-- (a * b - 1) over c, rounded down; a at least 1.
local function share_less(a, b, c)
  local q, r = share(a, b, c)
  return r == 0 and q - 1 or q
end

local function find(rows, member, class)
  for r = 1, #rows, ROW do
    if rows[r] == member and rows[r + CLASS] == class then return r end
  end
end

-- As `find`; a row that is missing begins.
local function row_of(L, member, class)
  local rows = L.rows
  local r = find(rows, member, class)
  if not r then
    r = #rows + 1
    rows[r], rows[r + CLASS], rows[r + TAKEN], rows[r + BEFORE], rows[r + FLAGS] = member, class, 0, 0, 0
    rows[r + WAITING], rows[r + HEAD], rows[r + UNTIL], rows[r + WEIGHT] = 0, 0, 0, 1
    for i = MISSED, ASKED_AT do rows[r + i] = 0 end
    if class < min(L.calm, AGED) then L.calm = class end
  end
  return r
end

-- What a row asks for within a moment is one burst.
local function note_burst(rows, r, units, mono, period)
  local since = mono - rows[r + SINCE]
  if since >= BURST or since * 64 >= period then rows[r + AT_ONCE], rows[r + SINCE] = 0, mono end
  rows[r + SQUARES] = min(rows[r + SQUARES] + units * (2 * rows[r + AT_ONCE] + units), MOST)
  rows[r + AT_ONCE] = rows[r + AT_ONCE] + units
  if rows[r + ASKED_AT] == 0 then rows[r + ASKED_AT] = mono end
end

-- What a row wants in a whole period, of which it asked for `asked` units in this era.
local function wanted(L, rows, r, asked)
  local period, melts = L.period, L.kind <= FIRST
  local past = rows[r + SINCE] - rows[r + ASKED_AT]
  if rows[r + WANTED] ~= 0 then
    local rate = share(asked, period, max(past, floor(period / (melts and 4 or 2))))
    return max(rows[r + WANTED], rate)
  end
  past = min(max(past, floor(period / (melts and 32 or 8)), 1000000), period)
  local rate = share(asked, period, past)
  return max(asked, min(rate, floor(L.usable / (melts and 2 or 4))))
end

-- What a row is expected to want in the next era.
local function wanted_next(L, rows, r)
  local asked, before = rows[r + TAKEN] + rows[r + MISSED], rows[r + WANTED]
  if before == 0 and L.kind ~= SLOTS then return wanted(L, rows, r, asked) end
  return max(asked, floor((asked + before) / 2))
end

-- Slots: units in flight at the peak, as far as that has not melted.
local function lately(rows, r, mono)
  local age = mono - rows[r + SINCE]
  if age <= SLOT_KEPT then return rows[r + SQUARES] end
  if age >= 2 * SLOT_KEPT then return 0 end
  local units, rest = share(rows[r + SQUARES], 2 * SLOT_KEPT - age, SLOT_KEPT)
  return rest > 0 and units + 1 or units
end

-- Slots: so many units were in flight, or wanted.
local function note_peak(rows, r, units, mono)
  if units >= lately(rows, r, mono) then rows[r + SQUARES], rows[r + SINCE] = units, mono end
end

-- Whether somebody was refused lately sets the room that must remain for a grant without a closer look; who wanted something,
-- to whom that applies.
local function cool(L)
  L.calm = CALM
  for r = 1, #L.rows, ROW do
    if L.rows[r + CLASS] < min(L.calm, AGED) then L.calm = L.rows[r + CLASS] end
  end
  L.floor = L.era - L.hot <= 1 and FAR or floor(L.usable * KEEP_UPPER / 100)
end

-- First: when the window is surely over; 0: unknown.
local function ends(L)
  local begin = L.anchor
  if begin == 0 and L.inflight == 0 then begin = L.last end
  return begin ~= 0 and begin + L.period or 0
end

-- `turn`, and `room` and `used` where they follow from the rest.
local function place(L)
  local kind = L.kind
  if kind == BUCKET then
    L.used = L.level + (L.part > 0 and 1 or 0)
    L.turn = 0
  elseif kind == SLOTS then
    L.turn = (L.era + 1) * SLOT_ERA
  else
    local turn = (L.era + 1) * L.period
    if kind == FIXED then
      turn = turn + L.origin
      L.early, L.roll = turn - L.hi, turn - L.lo
      turn = L.kept ~= 0 and min(L.roll, L.kept_until) or L.roll
      L.frees = L.held ~= 0 and min(turn, L.trial) or turn
      if L.trial ~= 0 then turn = min(turn, L.trial) end
    elseif kind == SLIDING then
      if L.marks[1] then turn = min(turn, L.marks[1] + L.period) end
    else
      local over = ends(L)
      if over ~= 0 then turn = min(turn, over) end
    end
    L.turn = turn
  end
  L.room = L.usable - L.used - L.inflight
  if kind == FIXED then
    if L.expected > L.foreign then L.room = L.room - (L.expected - L.foreign) end
    L.room = L.room - L.held
    if L.tried ~= 0 then L.room = L.room - 1 end
  end
end

-- -- edges: bounds of the clock that counts, as ratekeeper/ledger/edge.py ------------------------------------------------

local function edges_anew(L)
  L.whole = min(FIRST_DOUBT, floor(L.period / 2))
  L.doubt = min(BLIND_DOUBT, floor(L.period / 20))
  L.lo, L.hi, L.peak, L.sent, L.told, L.mark, L.shown = 0, 0, 0, 0, 0, 0, 0
end

local function blind(L)
  return L.doubt < L.whole
end

local function vague(L)
  return L.told ~= 0 and 240 * (L.hi - L.lo - 2 * (L.told - L.sent)) > L.period
end

local function edges_begin(L, now)
  L.lo, L.hi = now.lo - now.mono - L.doubt, now.hi - now.mono + L.doubt
  L.peak, L.sent, L.told, L.mark, L.shown = 0, 0, 0, 0, 0
end

local function edges_open(L, now)
  local low, high = now.lo - now.mono, now.hi - now.mono
  if L.doubt >= L.whole and L.lo <= low - L.doubt and L.hi >= high + L.doubt then
    L.whole = min(2 * L.whole, floor(L.period / 2))
  end
  L.doubt = L.whole
  L.lo, L.hi = low - L.doubt, high + L.doubt
end

local function edges_dated(L, now)
  if 2 * L.doubt >= L.period then return true end
  local low, high = now.lo - now.mono - L.doubt, now.hi - now.mono + L.doubt
  if low > L.hi or high < L.lo then
    L.lo, L.hi = low, high
    return false
  end
  L.lo, L.hi = max(low, L.lo), min(high, L.hi)
  return true
end

local function edges_between(L, after, before)
  local period, slack = L.period, floor(L.period / DRIFT)
  local number = floor((floor((after + before + L.lo + L.hi) / 2) - L.origin + floor(period / 2)) / period)
  local edge = number * period + L.origin
  L.shown = number
  local lo, hi = edge - before - slack, edge - after + slack
  local width = L.hi - L.lo
  if 2 * L.doubt >= period and width + hi - lo >= period then
    if hi - lo < width then L.lo, L.hi = lo, hi end
    return true
  end
  if lo + period <= L.hi or hi - period >= L.lo then return true end
  if lo > L.hi or hi < L.lo then return false end
  L.lo, L.hi = max(lo, L.lo), min(hi, L.hi)
  return true
end

local function edges_counter(L, used, sent, mark, at)
  local agrees = true
  if used < L.peak and 4 * used <= 3 * L.peak then
    if sent < L.told then return true end
    if at - L.sent + 2 * floor(L.period / DRIFT) >= L.period then
      sent = 0
    else
      agrees = edges_between(L, L.sent, at)
    end
  elseif used < L.peak then
    return true
  end
  L.peak, L.sent, L.told, L.mark = used, sent, at, mark
  return agrees
end

local function set_limit(L, limit)
  L.kind, L.capacity, L.headroom, L.period, L.refill, L.origin =
    limit[1], limit[2], limit[3], limit[4], limit[5], limit[6]
  L.usable = L.capacity - L.headroom
  L.rate = L.refill ~= 0 and L.refill or L.capacity
end

local function create(limit)
  local L = {seq = 0, base = 0, born = 0, epoch = 0, root = 0, rooted = 0, used = 0, inflight = 0, tally = 0, era = -1, hot = -9, rows = {}}
  set_limit(L, limit)
  L.carry, L.late, L.stamp, L.foreign, L.expected, L.seen = 0, 0, 0, 0, 0, 0
  L.kept, L.again, L.kept_until, L.held, L.trial, L.tried, L.probed, L.early, L.roll = 0, 0, 0, 0, 0, 0, 0, FAR, 0
  L.least, L.loose, L.finds = 0, 0, 0
  edges_anew(L)
  L.begun, L.anchor, L.last, L.owed = 0, 0, 0, 0
  L.level, L.part, L.at, L.marks = 0, 0, 0, {}
  cool(L)
  place(L)
  return L
end

local function load(raw)
  local s = cmsgpack.unpack(raw)
  local L = {
    seq = s[1], base = s[2], kind = s[3], capacity = s[4], headroom = s[5], period = s[6], refill = s[7], origin = s[8],
    usable = s[4] - s[5], rate = s[7] ~= 0 and s[7] or s[4],
    used = s[9], inflight = s[10], tally = s[11], era = s[12], hot = s[13], rows = s[20] == ROW and s[15] or {},
    born = s[16], epoch = s[17], root = s[18], rooted = s[19], trial = 0,
  }
  local own, kind = s[14], L.kind
  if kind == FIXED then
    L.carry, L.late, L.stamp, L.foreign, L.expected, L.seen = own[1], own[2], own[3], own[4], own[5], own[6]
    L.kept, L.again, L.kept_until, L.held, L.trial, L.tried, L.probed =
      own[7], own[8], own[9], own[10], own[11], own[12], own[13]
    L.lo, L.hi, L.doubt, L.whole = own[14], own[15], own[16], own[17]
    L.peak, L.sent, L.told, L.mark, L.shown = own[18], own[19], own[20], own[21], own[22]
    L.least, L.loose, L.finds = own[23], own[24], own[25]
  elseif kind == FIRST then
    L.begun, L.anchor, L.carry, L.last, L.owed = own[1], own[2], own[3], own[4], own[5]
  elseif kind == SLIDING then
    L.marks = own
  elseif kind == BUCKET then
    L.level, L.part, L.at = own[1], own[2], own[3]
  end
  cool(L)
  place(L)
  return L
end

local function dump(L)
  local own, kind = {}, L.kind
  if kind == FIXED then
    own = {
      L.carry, L.late, L.stamp, L.foreign, L.expected, L.seen, L.kept, L.again, L.kept_until, L.held, L.trial,
      L.tried, L.probed,
      L.lo, L.hi, L.doubt, L.whole, L.peak, L.sent, L.told, L.mark, L.shown,
      L.least, L.loose, L.finds,
    }
  elseif kind == FIRST then
    own = {L.begun, L.anchor, L.carry, L.last, L.owed}
  elseif kind == SLIDING then
    own = L.marks
  elseif kind == BUCKET then
    own = {L.level, L.part, L.at}
  end
  return cmsgpack.pack({
    L.seq, L.base, kind, L.capacity, L.headroom, L.period, L.refill, L.origin,
    L.used, L.inflight, L.tally, L.era, L.hot, own, L.rows, L.born, L.epoch, L.root, L.rooted, ROW,
  })
end

-- What was taken in the last era becomes the past; silent members are forgotten.
local function enter(L, era, mono)
  if era == L.era then return end
  local following = era == L.era + 1
  local old, rows, n = L.rows, {}, 0
  for r = 1, #old, ROW do
    local taken, flags, waiting = old[r + TAKEN], old[r + FLAGS], old[r + WAITING]
    local missed = old[r + MISSED]
    if not following then taken, flags, missed = 0, 0, 0 end
    if old[r + UNTIL] <= mono then waiting = 0 end
    local asked = taken + missed
    if asked ~= 0 or flags % 2 ~= 0 or waiting ~= 0 then
      rows[n + 1], rows[n + 2], rows[n + 3], rows[n + 4], rows[n + 5] = old[r], old[r + CLASS], 0, taken, 2 * (flags % 2)
      rows[n + 6], rows[n + 7], rows[n + 8], rows[n + 9] = waiting, old[r + HEAD], old[r + UNTIL], old[r + WEIGHT]
      rows[n + 10], rows[n + 11], rows[n + 16] = 0, following and wanted_next(L, old, r) or 0, 0
      rows[n + 12], rows[n + 13], rows[n + 14], rows[n + 15] = old[r + AT_ONCE], old[r + SINCE], old[r + SQUARES], old[r + MEAN]
      if L.kind ~= SLOTS then
        if asked ~= 0 then rows[n + 15] = floor(old[r + SQUARES] / asked) end
        rows[n + 14] = 0
      end
      n = n + ROW
    end
  end
  L.rows, L.era = rows, era
  cool(L)
end

-- Fixed: from what others spent in the window that ends, expect what they will spend in the next.
local function forecast(L)
  local period = L.period
  if L.foreign ~= 0 or L.expected ~= 0 then
    local witnessed = period
    if L.seen ~= 0 then witnessed = max(L.seen - (L.roll - floor((L.roll - L.early) / 4) - period), floor(period / 4)) end
    local sample = share(L.foreign, period, min(witnessed, period))
    sample = min(sample + floor(sample / min(10, max(1, L.finds))), (share(L.foreign, 44, 10)))
    L.expected = min(max(sample, floor(L.expected * 3 / 4)), floor(L.usable * 9 / 10))
    if L.expected * 200 < L.usable then L.expected = 0 end
  end
  L.foreign, L.seen, L.finds = 0, 0, 0
end

-- Fixed: let all that is spent count in any window up to instant `late` of the counting clock.
local function hold(L, now, late)
  L.used = L.used + L.held
  L.carry, L.late, L.stamp = L.used, max(L.late, late), now.mono
  L.kept, L.again, L.held, L.least, L.trial, L.tried = 0, 0, 0, 0, 0, 0
end

-- Fixed: written by somebody whose clock is ahead of all that ours could be: keep what is spent, leave the future.
local function come_back(L, now)
  if now.mono < L.early - L.period then
    hold(L, now, L.roll + L.lo - 1)
    L.era = floor((now.mono + L.lo - L.origin) / L.period)
    place(L)
  end
end

-- Fixed: the edge may lie anywhere within the first doubt: all that is spent counts on both sides of it.
local function open_edges(L, now)
  edges_open(L, now)
  hold(L, now, now.mono + L.hi)
  place(L)
end

-- Fixed: the window before had not rolled when we believed it had, and `spent` units counted in it.
local function take_back(L, now, spent)
  L.era = L.era - 1
  L.foreign, L.expected, L.seen, L.finds, L.held, L.least, L.trial, L.tried = 0, 0, 0, 0, 0, 0, 0, 0
  open_edges(L, now)
  L.used = max(L.used, spent)
  place(L)
end

-- Fixed: up to when this window may not have begun, if its edge may lie so far from the dates.
local function possible(L, now, doubt_of)
  return L.era * L.period + L.origin - (now.lo - now.mono - doubt_of)
end

-- First: if nothing can have arrived since `begun`, no window is open.
local function close(L)
  if L.anchor == 0 and L.inflight == 0 and L.last < L.begun then L.begun = 0 end
end

local function advance(L, now)
  local kind, mono, period = L.kind, now.mono, L.period
  if kind == FIXED then
    if L.era == -1 then
      edges_begin(L, now)
    elseif not edges_dated(L, now) then
      hold(L, now, mono + L.hi)
    end
    local era = max(floor((mono + L.lo - L.origin) / period), L.shown)
    if era > L.era then
      forecast(L)
      local spent = L.used
      local last = floor((L.late - L.origin) / period)
      L.kept_until = L.stamp + period + floor(period / LATER)
      L.kept = (last >= era and mono < L.kept_until) and L.carry or 0
      L.used = L.kept
      L.carry = last > era and L.kept or 0
      L.again = L.carry
      L.held, L.least, L.trial, L.tried = 0, 0, 0, 0
      if blind(L) then
        local till = (L.era >= 0 and mono or era * period + L.origin - L.lo) + min(2 * L.whole, floor(period / 2))
        if mono < till then
          L.trial, L.held = till, spent - L.kept
          L.least = max(0, L.held - L.loose)
        end
      end
      L.loose = L.kept + L.inflight
      local more = L.era >= 0 and floor(period / DRIFT) * (era - L.era) or 0
      L.lo, L.hi = L.lo - more, L.hi + more
      edges_dated(L, now)
      enter(L, era, mono)
    elseif L.kept ~= 0 and mono >= L.kept_until then
      L.used, L.carry = max(0, L.used - L.kept), max(0, L.carry - L.again)
      L.kept, L.again = 0, 0
    end
    if L.trial ~= 0 and mono >= L.trial then L.held, L.least, L.trial, L.tried = 0, 0, 0, 0 end
  elseif kind == FIRST then
    enter(L, floor(mono / period), mono)
    if L.anchor ~= 0 and mono >= L.anchor + period then
      L.tally = L.tally + L.used - L.carry
      L.used, L.carry = L.carry, 0
      L.anchor, L.owed = 0, L.inflight
      L.begun = L.begun + period
      close(L)
    end
    if L.anchor == 0 and L.inflight == 0 and mono >= L.last + period then
      L.tally = L.tally + L.used
      L.used, L.carry, L.begun = 0, 0, 0
    end
  elseif kind == SLIDING then
    local marks, gone, n = L.marks, 0, #L.marks
    while gone < n and marks[gone + 1] + period <= mono do
      L.used = L.used - marks[gone + 2]
      L.tally = L.tally + marks[gone + 2]
      gone = gone + 3
    end
    if gone > 0 then
      local rest = {}
      for i = gone + 1, n do rest[i - gone] = marks[i] end
      L.marks = rest
    end
    enter(L, floor(mono / period), mono)
  elseif kind == BUCKET then
    local before = L.used
    if mono > L.at then
      local past = mono - L.at
      local units, rest = share(past, L.rate, period)
      local part, over = share(rest, NANO, period)
      if units > L.level or (units == L.level and part >= L.part) then
        L.level, L.part, L.at = 0, 0, mono
      else
        L.level, L.part = L.level - units, L.part - part
        if L.part < 0 then L.level, L.part = L.level - 1, L.part + NANO end
        -- What has not made a whole billionth leaves its time unspent, for the next look.
        L.at = mono - floor(over / (NANO * L.rate))
      end
    end
    enter(L, floor(mono / period), mono)
    place(L)
    L.tally = L.tally + before - L.used
    return
  else
    enter(L, floor(mono / SLOT_ERA), mono)
  end
  place(L)
end

local function ripe(L, now)
  return now.mono >= L.turn
end

-- Put units in flight that are nobody's in particular.
local function occupy(L, units, mono)
  L.inflight, L.room = L.inflight + units, L.room - units
  if L.kind == FIRST and L.begun == 0 then L.begun = mono end
  if L.kind == FIXED and mono >= L.early then L.probed = mono end
end

local function take(L, cost, member, class, mono)
  occupy(L, cost, mono)
  local rows = L.rows
  local r = row_of(L, member, class)
  if L.trial ~= 0 and cost > 0 and L.room < 0 then L.tried, L.room = mono, L.room - 1 end
  rows[r + TAKEN] = rows[r + TAKEN] + cost
  if rows[r + WAITING] ~= 0 then rows[r + WAITING] = max(0, rows[r + WAITING] - cost) end
  if L.kind ~= SLOTS then
    note_burst(rows, r, cost, mono, L.period)
  else
    rows[r + AT_ONCE] = rows[r + AT_ONCE] + cost
    note_peak(rows, r, rows[r + AT_ONCE], mono)
  end
end

local function refused(L, member, class, head, waiting, till, weight)
  local rows = L.rows
  local r = row_of(L, member, class)
  if waiting ~= 0 then
    L.hot, L.floor = L.era, FAR
    if rows[r + FLAGS] % 2 == 0 then rows[r + FLAGS] = rows[r + FLAGS] + 1 end
  end
  rows[r + WAITING], rows[r + HEAD], rows[r + UNTIL], rows[r + WEIGHT] = waiting, min(head, waiting), till, weight
end

-- Calls gave up that would have cost `units`; others of the member still wait for `waiting`.
local function missed(L, member, class, units, waiting, mono)
  local rows = L.rows
  local r = row_of(L, member, class)
  rows[r + WAITING] = min(rows[r + WAITING], waiting)
  rows[r + MISSED] = rows[r + MISSED] + units
  if L.kind == SLOTS then
    note_peak(rows, r, rows[r + AT_ONCE] + units, mono)
  elseif units ~= 0 then
    note_burst(rows, r, units, mono, L.period)
  end
end

-- Units of a member are in flight no more; of those `spent` it need only be told for slots.
local function returned(L, member, class, units, mono, spent)
  local rows = L.rows
  local r = find(rows, member, class)
  if not r then return end
  local taken = rows[r + TAKEN]
  if taken ~= 0 and not spent then
    local left = max(0, taken - units)
    if L.kind ~= SLOTS then rows[r + SQUARES] = share(rows[r + SQUARES], left, taken) end
    rows[r + TAKEN] = left
  end
  if L.kind == SLOTS then
    note_peak(rows, r, rows[r + AT_ONCE], mono)
    rows[r + AT_ONCE] = max(0, rows[r + AT_ONCE] - units)
  end
end

local function refund(L, reserved)
  L.inflight, L.room = L.inflight - reserved, L.room + reserved
  if L.kind == FIRST then
    close(L)
    place(L)
  end
end

-- First: units spent by `at`; `place` must follow.
local function spent_first(L, reserved, actual, at)
  L.inflight, L.used = L.inflight - reserved, L.used + actual
  if reserved ~= 0 or actual ~= 0 then
    L.last = max(L.last, at.mono)
    if L.begun == 0 or reserved == 0 then
      L.begun = min(L.begun ~= 0 and L.begun or at.mono, at.mono - L.period)
    end
    if at.mono >= L.begun + L.period then L.carry = L.carry + actual end
  end
end

local function settle(L, reserved, actual, at)
  local kind = L.kind
  if kind == SLOTS then
    L.inflight, L.room, L.tally = L.inflight - reserved, L.room + reserved, L.tally + reserved
  elseif kind == BUCKET then
    L.inflight, L.level = L.inflight - reserved, L.level + actual
    place(L)
  elseif kind == FIRST then
    spent_first(L, reserved, actual, at)
    L.owed = L.owed - reserved
    if L.owed < 0 and L.anchor == 0 then L.anchor = at.mono end
    place(L)
  else
    L.inflight, L.used, L.room = L.inflight - reserved, L.used + actual, L.room + reserved - actual
    if kind == FIXED then
      L.tally = L.tally + actual
      if at.mono < L.trial then L.loose = L.loose + actual end
      if at.mono >= L.early then
        if L.late < L.roll + L.lo then L.carry = 0 end
        L.carry = L.carry + actual
        L.late, L.stamp = max(L.late, at.mono + L.hi), max(L.stamp, at.mono)
      end
    elseif actual ~= 0 then
      local marks = L.marks
      local n = #marks
      local when = n > 0 and max(at.mono, marks[n - 2]) or at.mono
      if n > 0 and when - marks[n] < floor(L.period / RING) then
        marks[n - 2], marks[n - 1] = when, marks[n - 1] + actual
      else
        marks[n + 1], marks[n + 2], marks[n + 3] = when, actual, when
        if n == 0 then place(L) end
      end
    end
  end
end

local function lapse(L, reserved, at, now)
  if L.kind == FIRST then
    spent_first(L, reserved, reserved, at)
    place(L)
  elseif L.kind == FIXED and at.mono < L.early - L.period and now.mono >= L.roll - L.period then
    refund(L, reserved)
  else
    settle(L, reserved, reserved, at)
  end
end

-- Units of foreign traffic that the provider's used-counter shows.
local function observe(L, used, sent, mark, reserved, actual, now)
  local more = max(0, reserved - actual)
  if L.kind ~= FIXED then
    local foreign = used - (L.used + L.inflight + more + L.tally - mark)
    if foreign <= 0 then return 0 end
    settle(L, 0, foreign, now)
    return foreign
  end
  local period = L.period
  if blind(L) then open_edges(L, now) end
  local begin = L.roll - period
  local before = (begin - period <= L.sent and L.sent < begin and L.shown < L.era) and L.peak or 0
  local peak, since = L.peak, L.tally - L.mark
  if not edges_counter(L, used, sent.mono, mark, now.mono) then open_edges(L, now) end
  if L.peak < peak then
    L.used, L.carry, L.kept, L.again = min(L.used, since), min(L.carry, since), 0, 0
  end
  place(L)
  if ripe(L, now) or L.shown > L.era then advance(L, now) end
  if sent.mono < L.roll - period or now.mono >= L.early then return 0 end
  local bound = used + L.tally - mark - actual
  local foreign = max(0, used - (L.used + L.inflight + more))
  if foreign > 0 and before > 0 and used >= before then
    local far = 2 * before >= L.usable and min(2 * L.whole, floor(period / 2)) or L.whole
    if sent.mono < possible(L, now, far) then
      take_back(L, now, bound)
      return 0
    end
  end
  L.kept, L.again = 0, 0
  L.seen = max(L.seen, now.mono)
  if foreign > 0 then
    L.used, L.foreign, L.tally = L.used + foreign, L.foreign + foreign, L.tally + foreign
    L.finds = L.finds + 1
  elseif bound < L.used then
    L.used, L.foreign = bound, min(L.foreign, bound)
  end
  place(L)
  return foreign
end

local function fill(L, now)
  local missing = L.usable - L.used - L.inflight
  if L.kind ~= SLOTS and missing > 0 then settle(L, 0, missing, now) end
end

-- A call reserved at `sent` was answered and not refused.
local function confirm(L, sent)
  if L.tried ~= 0 and sent.mono >= L.tried then
    L.held = min(L.held, max(0, L.capacity - (L.used - L.kept)))
    L.tried = 0
    if L.held < L.least or L.held == 0 then
      L.loose = min(L.loose, L.capacity - L.least)
      L.held, L.least, L.trial = 0, 0, 0
    end
    place(L)
  end
end

-- The provider refused a call that was reserved at `sent`.
local function overrun(L, sent, now, stated)
  if L.kind == FIXED then
    local begin = L.roll - L.period
    if begin <= sent.mono and sent.mono < possible(L, now, L.whole) and L.shown < L.era then
      take_back(L, now, L.usable)
      return
    end
    if blind(L) then open_edges(L, now) end
  end
  if not stated then fill(L, now) end
end

local function doubt(L, now)
  if L.kind == FIXED then
    edges_begin(L, now)
    hold(L, now, now.mono + L.hi)
    place(L)
    come_back(L, now)
  end
end

-- Units that were ever settled: never falls, and knows nothing of windows.
local function entered(L)
  return L.kind == FIXED and L.tally or L.used + L.tally
end

-- Follow a limit that changed live. Of another kind: a new ledger, in which all that is spent was spent just now.
local function convert(L, limit, now)
  advance(L, now)
  if L.kind ~= limit[1] then
    local other = create(limit)
    for _, own in ipairs({'seq', 'name', 'dirty', 'born', 'epoch', 'root', 'rooted'}) do other[own] = L[own] end
    advance(other, now)
    occupy(other, L.inflight, now.mono)
    settle(other, 0, L.used, now)
    other.base = entered(other) - (entered(L) - L.base)
    return other
  end
  local period, origin = L.period, L.origin
  set_limit(L, limit)
  if L.kind == FIXED then
    if period ~= L.period or origin ~= L.origin then
      local was_blind = blind(L)
      edges_anew(L)
      if not was_blind then L.doubt = L.whole end
      edges_begin(L, now)
      hold(L, now, now.mono + L.hi)
      L.era = floor((now.mono + L.lo - L.origin) / L.period)
      L.expected = share(L.expected, L.period, period)
      L.hot = -9
    end
    cool(L)
    place(L)
  else
    if period ~= L.period then L.hot = -9 end
    cool(L)
    place(L)
    L.turn = 0
  end
  return L
end

-- What the classes above a caller's are expected to want: the fixed share, what they wait for, what they want in a period, what
-- they want at once (of slots: what they lack of it), and when that falls (slots).
local function above(L, class, mono, later)
  local rows, level = L.rows, class % AGED
  local fixed, blocked, even, burst, falls = floor(L.usable * KEEP_UPPER / 100), 0, 0, 0, 0
  for r = 1, #rows, ROW do
    if rows[r + CLASS] % AGED < level then
      local waits = rows[r + UNTIL] > mono and rows[r + WAITING] or 0
      local asked = rows[r + TAKEN] + rows[r + MISSED]
      blocked = blocked + waits
      if rows[r + CLASS] >= AGED or later > 1 or later == 1 and asked == 0 and rows[r + FLAGS] % 2 == 0 and waits == 0 then
        -- what aged calls take is no demand of the class; and who has been silent for long will be forgotten
      elseif L.kind ~= SLOTS then
        even = even + (later == 1 and wanted_next(L, rows, r) or wanted(L, rows, r, asked))
        if later == 0 or asked == 0 then burst = max(burst, rows[r + MEAN]) end
        if asked ~= 0 then burst = max(burst, floor(rows[r + SQUARES] / asked)) end
      else
        local peak = lately(rows, r, mono)
        if peak > rows[r + AT_ONCE] then
          burst = burst + peak - rows[r + AT_ONCE]
          local melts = share(peak - 1, SLOT_KEPT, rows[r + SQUARES])
          local over = rows[r + SINCE] + 2 * SLOT_KEPT - melts
          falls = falls ~= 0 and min(falls, over) or over
        end
      end
    end
  end
  if L.kind ~= SLOTS then even, burst = min(even, L.usable), min(burst, L.usable) end
  return fixed, blocked, even, burst, falls
end

-- The lowest of the lines m + m / a + a b, for `m` units on average in bursts of `b`: for how long a time to come `units` are
-- enough.
local function reach_lines(units, even, burst, others, span, part)
  local best = -1
  for power = 0, 4 do
    local a = 2 ^ power
    local rest = units - a * burst
    if rest < 0 then break end
    best = max(best, share_less(rest + 1, span, even + floor(even / (a * part)) + others))
  end
  return best
end

-- Longest time to come for which it is enough to leave `units`, where a window ends.
local function reach(units, fixed, blocked, even, burst, others, most, span)
  local slope = min(max(fixed, blocked) + others, most)
  local long = slope ~= 0 and share_less(units + 1, span, slope) or FAR
  if even ~= 0 then
    even = fixed + even
    local best = share_less(units + 1, span, STEEP * even + others)
    best = max(best, reach_lines(units, even, burst, others, span, 1))
    long = min(long, best + min(BURST, floor(span / 8)))
  end
  return long
end

-- Units that must be left to the other members of the caller's class.
local function fair_lack(L, member, class, mono)
  local rows, lack = L.rows, 0
  if L.kind > FIRST then
    local mine = find(rows, member, class)
    local served = mine and floor(rows[mine + TAKEN] / rows[mine + WEIGHT]) or 0
    if served == 0 then return 0 end
    for r = 1, #rows, ROW do
      local taken, weight = rows[r + TAKEN], rows[r + WEIGHT]
      if rows[r + CLASS] == class and rows[r] ~= member and rows[r + WAITING] ~= 0 and rows[r + UNTIL] > mono
        and floor(taken / weight) < served then
        lack = lack + min(rows[r + WAITING], max(rows[r + HEAD], served * weight - taken))
      end
    end
    return lack
  end
  local usable = L.usable
  local order, n, heavy, here = {}, 0, 0, false
  for r = 1, #rows, ROW do
    if rows[r + CLASS] == class then
      local mine = rows[r] == member
      local want = usable
      if not mine and rows[r + FLAGS] == 0 then want = max(rows[r + TAKEN], rows[r + BEFORE]) end
      n = n + 1
      order[n] = {want, rows[r + WEIGHT], rows[r + TAKEN], mine, n}
      heavy = heavy + rows[r + WEIGHT]
      here = here or mine
    end
  end
  if n == 0 or (n == 1 and here) then return 0 end
  if not here then
    n = n + 1
    order[n] = {usable, 1, 0, true, n}
    heavy = heavy + 1
  end
  -- Max-min: those who want least per weight are served in full, the others share what is left by weight.
  table.sort(order, function(a, b)
    local x, y = a[1] / a[2], b[1] / b[2]
    if x == y then return a[5] < b[5] end
    return x < y
  end)
  local rest = usable
  for i = 1, n do
    local one = order[i]
    local part = min(one[1], floor(rest * one[2] / heavy))
    rest, heavy = rest - part, heavy - one[2]
    if not one[4] and part > one[3] then lack = lack + part - one[3] end
  end
  return lack
end

-- Instant at which `units` more than now will be free, or UNKNOWN; below NEVER: unknown, but not before the instant of the
-- opposite sign.
local function frees(L, units, now)
  local kind = L.kind
  if kind == FIXED then return max(now.mono + 1, L.frees) end
  if kind == FIRST then
    local over = ends(L)
    return over ~= 0 and max(now.mono + 1, over) or UNKNOWN
  elseif kind == BUCKET then
    local level, used, sign = L.level, L.used, 1
    -- What is in flight cannot drain before it settles, which may be now: look again then.
    if units > used then level, used, sign = level + L.inflight, used + L.inflight, -1 end
    if units > used then return UNKNOWN end
    -- What must drain, as whole units and a rest in billionths; then the time that takes, rounded up.
    local whole = level - (used - units)
    local steps, rest = share(whole, L.period, L.rate)
    local more, odd = share(L.part, L.period, NANO)
    rest = rest + more + (odd > 0 and 1 or 0)
    return sign * max(now.mono + 1, min(FAR, L.at + steps - floor(-rest / L.rate)))
  end
  return UNKNOWN
end

-- Sliding: what upper classes may want evenly over a period is kept only as far as it comes back too late for that.
local function opens_sliding(L, cost, fixed, blocked, even, burst, others, now)
  local marks, period, usable = L.marks, L.period, L.usable
  local spare = L.room - cost
  local free = spare - others
  local pieces, released, melted = #marks / 3, {[0] = 0}, {}
  for i = 1, pieces do released[i] = released[i - 1] + marks[3 * i - 1] end
  melted[pieces] = 0
  for i = pieces - 1, 0, -1 do
    melted[i] = melted[i + 1]
    -- Pieces by which not even what others need is back are passed over below.
    local units = free + released[i]
    if units >= 0 and fixed ~= 0 and even == 0 then
      melted[i] = max(melted[i], marks[3 * i + 1] + period - share_less(units + 1, period, fixed))
    elseif units >= 0 and even ~= 0 then
      melted[i] = max(melted[i], marks[3 * i + 1] + period - reach_lines(units, fixed + even, burst, 0, period, 4))
    end
  end
  local kept = free + L.used < max(fixed, even)
  for i = 0, pieces do
    local available_at = i > 0 and marks[3 * i - 2] + period or now.mono
    local could = true
    if spare + released[i] < usable - cost then
      could = not kept and free + released[i] >= blocked
      available_at = max(available_at, melted[i])
    end
    if could and (i == pieces or available_at < marks[3 * i + 1] + period) then return available_at > now.mono and available_at or 0 end
  end
  return -(now.mono + period)
end

-- When `cost` units may be taken, if so much is to be left to upper classes and to others: 0 if now, else an instant or unknown.
local function opens_above(L, cost, fixed, blocked, even, burst, falls, lack, ahead, now)
  local kind, usable = L.kind, L.usable
  local spare, most = L.room - cost, usable - cost
  if kind <= FIRST then
    if spare == most then return 0 end
    if spare < 0 then return frees(L, cost, now) end
    local period, to_come = L.period
    if kind == FIXED then
      to_come = max(((even ~= 0 or blocked ~= 0) and L.roll or L.early) - now.mono, 0)
    else
      local over = ends(L)
      if L.anchor ~= 0 then
        over = 2 * L.begun + period - L.anchor
      elseif over == 0 then
        over = now.mono + period
      end
      to_come = max(over - now.mono, 0)
    end
    local long = reach(spare, fixed, blocked, even, burst, lack, most, period)
    if to_come <= long then return 0 end
    local over = frees(L, cost, now)
    return over < 0 and over or min(over, now.mono + to_come - long)
  end
  lack = max(lack, ahead)
  if kind == SLIDING then return opens_sliding(L, cost, fixed, blocked, even, burst, lack, now) end
  if kind == SLOTS then
    if spare >= min(max(burst, blocked) + lack, most) then return 0 end
    return falls ~= 0 and spare >= 0 and -falls or UNKNOWN
  end
  local rate = L.rate
  even = fixed + even
  local more = share(3 * burst, even, max(rate - even, floor(rate / 8), 1))
  local keep = min(burst + more, floor(usable / 2))
  keep = min(max(fixed, blocked, keep) + lack, most)
  if spare >= keep then return 0 end
  return frees(L, cost + keep - L.room, now)
end

local function opens_in_general(L, cost, member, class, now, ahead)
  if cost > L.usable then return NEVER end
  if cost == 0 then return 0 end
  local lack = L.era - L.hot <= 1 and fair_lack(L, member, class, now.mono) or 0
  if class % AGED == 0 then return opens_above(L, cost, 0, 0, 0, 0, 0, lack, ahead, now) end
  local fixed, blocked, even, burst, falls = above(L, class, now.mono, 0)
  local found = opens_above(L, cost, fixed, blocked, even, burst, falls, lack, ahead, now)
  for later = 1, 2 do
    local edge = (L.era + later) * L.period
    if even == 0 or found <= edge or L.kind == FIXED then break end
    -- Within a window that knows no eras, less is expected from the next era on, and then nothing.
    fixed, blocked, even, burst, falls = above(L, class, now.mono, later)
    found = max(edge, opens_above(L, cost, fixed, blocked, even, burst, falls, lack, ahead, now))
  end
  return found
end

-- Fixed: when a call may go that would take of the last few units: one in each quarter of where the edge may lie.
local function probe(L, cost, now)
  local width = L.hi - L.lo
  local most = 2 * width >= L.period and floor(L.usable / 4) or floor(L.usable / 50)
  local keep = min(3, floor(most / cost)) * cost
  if L.room - cost >= keep or not vague(L) then return 0 end
  if now.mono < L.early then return L.early end
  local quarter = max(1, floor(width / 4))
  local begin = L.early + floor((now.mono - L.early) / quarter) * quarter
  return L.probed < begin and 0 or min(begin + quarter, L.roll)
end

-- When `cost` units may be taken: 0 if now, else an instant, unknown or NEVER.
local function available_at(L, cost, member, class, now, ahead)
  if L.kind ~= FIXED then return opens_in_general(L, cost, member, class, now, ahead) end
  advance(L, now)
  come_back(L, now)
  local at = opens_in_general(L, cost, member, class, now, ahead)
  if at > 0 and L.trial ~= 0 then
    if L.tried ~= 0 then return -L.trial end
    L.room = L.room + L.held
    at = opens_in_general(L, cost, member, class, now, ahead)
    L.room = L.room - L.held
    return at
  end
  if at ~= 0 or cost == 0 then return at end
  return probe(L, cost, now)
end
