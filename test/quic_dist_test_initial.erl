%% QUIC v1 Initial packets, made and read by hand (RFC 9001, section 5): what a stranger needs to begin a handshake, and to read how it
%% was refused, without a QUIC library. The keys of Initial packets follow from the connection id that the client chose.
-module(quic_dist_test_initial).

-export([new/0, client_hello/2, client_hello/3, packet/2, packet/3, close_reason/2, version_probe/2]).

-export_type([attempt/0]).

-type attempt() :: #{dcid := binary(), scid := binary()}.

-define(VERSION, 1).
-define(SALT, <<16#38762cf7f55934b34d179ae6a4c80cadccbb7f0a:160>>).

%% The connection ids of one attempt.
-spec new() -> attempt().
new() -> #{dcid => crypto:strong_rand_bytes(16), scid => crypto:strong_rand_bytes(8)}.

%% A long-header datagram of a version that nobody has.
-spec version_probe(attempt(), pos_integer()) -> binary().
version_probe(#{dcid := Dcid, scid := Scid}, Size) ->
    Head = <<1:1, 1:1, 16#3a:6, 16#1a2a3a4a:32, (byte_size(Dcid)), Dcid/binary, (byte_size(Scid)), Scid/binary>>,
    <<Head/binary, (crypto:strong_rand_bytes(Size - byte_size(Head)))/binary>>.

%% A TLS 1.3 ClientHello that offers these protocols, and transport parameters that name the attempt.
-spec client_hello(attempt(), [binary()]) -> binary().
client_hello(Attempt, Alpn) -> client_hello(Attempt, Alpn, <<>>).

%% The same with a server name.
-spec client_hello(attempt(), [binary()], binary()) -> binary().
client_hello(#{scid := Scid}, Alpn, Name) ->
    ServerName = [extension(0, <<(byte_size(Name) + 3):16, 0, (byte_size(Name)):16, Name/binary>>) || Name =/= <<>>],
    {Share, _} = crypto:generate_key(ecdh, x25519),
    Protocols = << <<(byte_size(P)), P/binary>> || P <- Alpn >>,
    Groups = <<16#001d:16>>,
    Signatures = <<16#0403:16, 16#0804:16, 16#0807:16, 16#0401:16>>,
    %% initial_source_connection_id, initial_max_data, initial_max_stream_data_bidi_local and _remote, initial_max_streams_bidi
    Parameters = <<16#0f, (byte_size(Scid)), Scid/binary, 4, 4, 16#80100000:32, 5, 4, 16#80100000:32, 6, 4, 16#80100000:32, 8, 2, 16#4064:16>>,
    Extensions = << (iolist_to_binary(ServerName))/binary, (extension(16#2b, <<2, 16#0304:16>>))/binary, (extension(16#0a, <<(byte_size(Groups)):16, Groups/binary>>))/binary,
                    (extension(16#0d, <<(byte_size(Signatures)):16, Signatures/binary>>))/binary,
                    (extension(16#33, <<36:16, 16#001d:16, 32:16, Share/binary>>))/binary,
                    (extension(16#10, <<(byte_size(Protocols)):16, Protocols/binary>>))/binary, (extension(16#39, Parameters))/binary >>,
    Body = <<16#0303:16, (crypto:strong_rand_bytes(32))/binary, 0, 2:16, 16#1301:16, 1, 0, (byte_size(Extensions)):16, Extensions/binary>>,
    <<1, (byte_size(Body)):24, Body/binary>>.

extension(Type, Data) -> <<Type:16, (byte_size(Data)):16, Data/binary>>.

%% A datagram of 1,200 bytes with one Initial packet that carries these TLS bytes.
-spec packet(attempt(), binary()) -> binary().
packet(Attempt, Crypto) -> packet(Attempt, 0, <<6, 0, (varint(byte_size(Crypto)))/binary, Crypto/binary>>).

%% The same with this packet number and these frames.
-spec packet(attempt(), non_neg_integer(), binary()) -> binary().
packet(#{dcid := Dcid, scid := Scid}, Number, Frame) ->
    Head = <<1:1, 1:1, 0:2, 0:2, 3:2, ?VERSION:32, (byte_size(Dcid)), Dcid/binary, (byte_size(Scid)), Scid/binary, 0>>,
    Padding = 1200 - byte_size(Head) - 2 - 4 - byte_size(Frame) - 16,
    Plain = <<Frame/binary, 0:Padding/unit:8>>,
    Header = <<Head/binary, 1:2, (4 + byte_size(Plain) + 16):14, Number:32>>,
    {Key, Iv, Hp} = keys(Dcid, <<"client in">>),
    {Cipher, Tag} = crypto:crypto_one_time_aead(aes_128_gcm, Key, nonce(Iv, Number), Plain, Header, 16, true),
    Sealed = <<Cipher/binary, Tag/binary>>,
    <<MaskFirst, MaskNumber:32, _/binary>> = crypto:crypto_one_time(aes_128_ecb, Hp, binary:part(Sealed, 0, 16), true),
    HeadLength = byte_size(Header) - 5,
    <<First, Middle:HeadLength/binary, Number:32>> = Header,
    <<(First bxor (MaskFirst band 16#0f)), Middle/binary, (Number bxor MaskNumber):32, Sealed/binary>>.

%% What the server's datagram says: the error code of CONNECTION_CLOSE in an Initial packet, or none.
-spec close_reason(attempt(), binary()) -> {close, Code :: non_neg_integer(), Text :: binary()} | no_close | not_initial.
close_reason(#{dcid := Dcid}, <<1:1, 1:1, 0:2, _:4, ?VERSION:32, DcidLength, _:DcidLength/binary, ScidLength, _:ScidLength/binary, Rest/binary>> = Datagram) ->
    {TokenLength, AfterToken} = read_varint(Rest),
    <<_:TokenLength/binary, AfterLength/binary>> = AfterToken,
    {Length, Protected} = read_varint(AfterLength),
    Offset = byte_size(Datagram) - byte_size(Protected),
    {Key, Iv, Hp} = keys(Dcid, <<"server in">>),
    <<_:4/binary, Sample:16/binary, _/binary>> = Protected,
    <<MaskFirst, Mask:4/binary, _/binary>> = crypto:crypto_one_time(aes_128_ecb, Hp, Sample, true),
    First = binary:first(Datagram) bxor (MaskFirst band 16#0f),
    NumberLength = (First band 3) + 1,
    <<Number:NumberLength/unit:8>> = crypto:exor(binary:part(Protected, 0, NumberLength), binary:part(Mask, 0, NumberLength)),
    Header = <<First, (binary:part(Datagram, 1, Offset - 1))/binary, Number:NumberLength/unit:8>>,
    CipherLength = Length - NumberLength - 16,
    <<_:NumberLength/binary, Cipher:CipherLength/binary, Tag:16/binary, _/binary>> = Protected,
    frames(crypto:crypto_one_time_aead(aes_128_gcm, Key, nonce(Iv, Number), Cipher, Header, Tag, false));
close_reason(_, _) -> not_initial.

frames(<<0, Rest/binary>>) -> frames(Rest);
frames(<<1, Rest/binary>>) -> frames(Rest);
frames(<<2, Rest/binary>>) ->
    {_Largest, R1} = read_varint(Rest),
    {_Delay, R2} = read_varint(R1),
    {Count, R3} = read_varint(R2),
    frames(skip_varints(1 + 2 * Count, R3));
frames(<<6, Rest/binary>>) ->
    {_Offset, R1} = read_varint(Rest),
    {Length, R2} = read_varint(R1),
    <<_:Length/binary, R3/binary>> = R2,
    frames(R3);
frames(<<16#1c, Rest/binary>>) ->
    {Code, R1} = read_varint(Rest),
    {_FrameType, R2} = read_varint(R1),
    {Length, R3} = read_varint(R2),
    {close, Code, binary:part(R3, 0, Length)};
frames(<<>>) -> no_close.

skip_varints(0, Rest) -> Rest;
skip_varints(N, Rest) ->
    {_, After} = read_varint(Rest),
    skip_varints(N - 1, After).

keys(Dcid, Side) ->
    Initial = crypto:mac(hmac, sha256, ?SALT, Dcid),
    Secret = expand(Initial, Side, 32),
    {expand(Secret, <<"quic key">>, 16), expand(Secret, <<"quic iv">>, 12), expand(Secret, <<"quic hp">>, 16)}.

%% HKDF-Expand-Label, whose results here never need a second block.
expand(Secret, Label, Length) ->
    Full = <<"tls13 ", Label/binary>>,
    binary:part(crypto:mac(hmac, sha256, Secret, <<Length:16, (byte_size(Full)), Full/binary, 0, 1>>), 0, Length).

nonce(Iv, Number) -> crypto:exor(Iv, <<0:64, Number:32>>).

varint(N) when N < 64 -> <<N>>;
varint(N) when N < 16384 -> <<1:2, N:14>>.

read_varint(<<0:2, N:6, Rest/binary>>) -> {N, Rest};
read_varint(<<1:2, N:14, Rest/binary>>) -> {N, Rest};
read_varint(<<2:2, N:30, Rest/binary>>) -> {N, Rest};
read_varint(<<3:2, N:62, Rest/binary>>) -> {N, Rest}.
