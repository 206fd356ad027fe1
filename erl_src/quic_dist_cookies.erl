%% @doc The cookies of this node: its own, and those that erlang:set_cookie/2 and
%% `-setcookie Node Cookie' gave it for others; and the identities that are made
%% of the latter, each once, for it takes 0.2 s.
%%
%% Who dials goes by a cookie before it is known who that is, so all of them have
%% to be known then, and `auth' tells one at a time, of a node that is named. Its
%% table is read in place of that: protected, and the same since OTP was
%% published. If it is not there any more, no node may dial by such a cookie.
-module(quic_dist_cookies).

-export([own/1, new/0, hash/3, for_dialling/5, known/3, others/4]).

-export_type([cookies/0]).

-record(cookies, {table :: undefined | ets:tid(),
                  %% By a hash of the cookie, too short to guess it from: it would
                  %% show in a crash report. nil: none can be made.
                  made = #{} :: #{non_neg_integer() => quic_dist_nif:identity()
                                                     | nil}}).
-opaque cookies() :: #cookies{}.

%% @doc The node's own cookie, by the name it listens as.
%%
%% Asked for by name, because net_kernel gives the node its own entry of
%% `-setcookie Node Cookie' only after listen. auth is gone before us when the
%% distribution stops.
-spec own(node() | undefined) -> {ok, binary()} | {error, no_cookie}.
own(undefined) ->
    own(node());
own(Node) ->
    try auth:get_cookie(Node) of
        nocookie ->
            case whereis(auth) of
                undefined -> {error, no_cookie};
                _ -> {ok, <<"nocookie">>}
            end;
        Cookie ->
            {ok, atom_to_binary(Cookie)}
    catch
        exit:_ -> {error, no_cookie}
    end.

%% @doc Nothing is known yet.
-spec new() -> cookies().
new() ->
    #cookies{}.

%% @doc Differs when a cookie that is not the own has been set, or the own has.
-spec hash(Own :: binary(), Name :: binary(), cookies()) ->
          {non_neg_integer(), cookies()}.
hash(Own, Name, Cookies) ->
    {Set, Found} = set(Own, Name, Cookies),
    {erlang:phash2({Own, Name, Set}), Found}.

%% @doc The identity to dial a node with; `nil': the endpoint's own.
-spec for_dialling(node(), Own :: binary(), quic_dist_trust:trust(),
                   Name :: binary(), cookies()) ->
          {ok, quic_dist_nif:identity() | nil, cookies()} | {error, term()}.
for_dialling(Node, Own, Trust, Name, #cookies{made = Made} = Cookies) ->
    case own(Node) of
        {ok, Cookie} when Cookie =/= Own ->
            Key = key(Cookie, Name),
            case Made of
                #{Key := Identity} when Identity =/= nil ->
                    {ok, Identity, Cookies};
                _ ->
                    case make(Trust, Cookie, Name, atom_to_binary(Node)) of
                        {ok, Identity} ->
                            NewMade = Made#{Key => Identity},
                            {ok, Identity, Cookies#cookies{made = NewMade}};
                        {error, _} = Error ->
                            Error
                    end
            end;
        _ ->
            {ok, nil, Cookies}
    end.

%% @doc All nodes with another cookie than the own, and what has been made of
%% these; `nil': nothing yet.
-spec known(Own :: binary(), Name :: binary(), cookies()) ->
          [{binary(), quic_dist_nif:identity() | nil}].
known(Own, Name, #cookies{made = Made} = Cookies) ->
    {Pairs, _} = set(Own, Name, Cookies),
    [{Node, maps:get(key(Cookie, Name), Made, nil)} || {Node, Cookie} <- Pairs].

%% @doc The same. Makes one that is missing; `more': others are missing
%% still. What was made of a cookie that nobody has any more is forgotten.
-spec others(Own :: binary(), quic_dist_trust:trust(), Name :: binary(),
             cookies()) ->
          {more | all, [{binary(), quic_dist_nif:identity() | nil}], cookies()}.
others(Own, Trust, Name, Cookies) ->
    {Pairs, #cookies{made = Made} = Found} = set(Own, Name, Cookies),
    Set = [{Node, key(Cookie, Name), Cookie} || {Node, Cookie} <- Pairs],
    Kept = maps:with([Key || {_, Key, _} <- Set], Made),
    {More, NewMade} =
        case [Missing || {_, Key, _} = Missing <- Set,
                         not is_map_key(Key, Kept)] of
            [] ->
                {all, Kept};
            [{Node, Key, Cookie} | Rest] ->
                {case [K || {_, K, _} <- Rest, K =/= Key] of
                     [] -> all;
                     _ -> more
                 end,
                 Kept#{Key => case make(Trust, Cookie, Name, Node) of
                                  {ok, Identity} -> Identity;
                                  %% Of an empty cookie: nobody can use it.
                                  {error, _} -> nil
                              end}}
        end,
    {More, [{Node, maps:get(Key, NewMade, nil)} || {Node, Key, _} <- Set],
     Found#cookies{made = NewMade}}.

make(Trust, Cookie, Name, Node) ->
    case quic_dist_trust:identity(Trust, fun() -> {ok, Cookie} end, Name) of
        {ok, Identity, _Warnings} ->
            %% What else there is to warn about has been said of the own one.
            quic_dist_trust:is_weak(Cookie)
                andalso quic_dist_log:log(
                          warning, "quic_dist: the cookie that is set for ~ts is "
                          "weak: whoever reaches this node's port can guess it",
                          [Node]),
            {ok, Identity};
        {error, _} = Error ->
            Error
    end.

key(Cookie, Name) ->
    erlang:phash2({Cookie, Name}).

set(Own, Name, Cookies) ->
    {All, Found} = read(Cookies),
    {lists:sort([{Node, Cookie}
                 || {NodeAtom, CookieAtom} <- All,
                    Node <- [atom_to_binary(NodeAtom)], Node =/= Name,
                    Cookie <- [atom_to_binary(CookieAtom)], Cookie =/= Own]),
     Found}.

%% To look through all tables may take long where there are many.
read(#cookies{table = Table} = Cookies) ->
    case is_of_auth(Table) of
        true -> {tuples(Table), Cookies};
        false -> find(Cookies)
    end.

find(Cookies) ->
    case [Table || Table <- ets:all(), is_of_auth(Table)] of
        [Table] -> {tuples(Table), Cookies#cookies{table = Table}};
        _ -> {[], Cookies#cookies{table = undefined}}
    end.

is_of_auth(undefined) ->
    false;
is_of_auth(Table) ->
    case whereis(auth) of
        undefined -> false;
        Auth -> ets:info(Table, owner) =:= Auth
                    andalso ets:info(Table, name) =:= cookies
    end.

tuples(Table) ->
    try
        [{Node, Cookie} || {Node, Cookie} <- ets:tab2list(Table),
                           is_atom(Node), is_atom(Cookie)]
    catch
        error:badarg -> []
    end.
