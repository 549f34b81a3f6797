-- What a keelson of schema version 1 has left: pg_dump --inserts --no-owner.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA keelson;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE keelson.head (
    id integer NOT NULL,
    "position" bigint NOT NULL,
    seq bigint NOT NULL,
    revision bigint NOT NULL,
    batch bytea NOT NULL,
    bytes bigint NOT NULL,
    epoch bigint NOT NULL,
    fence bigint NOT NULL,
    CONSTRAINT head_id_check CHECK ((id = 1))
)
WITH (fillfactor='10', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');
CREATE TABLE keelson.kept (
    id integer NOT NULL,
    floor bigint NOT NULL,
    deleted bigint NOT NULL,
    freed bigint NOT NULL,
    CONSTRAINT kept_id_check CHECK ((id = 1))
)
WITH (fillfactor='10', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');
CREATE TABLE keelson.lessor (
    id integer NOT NULL,
    holder text NOT NULL,
    until timestamp with time zone NOT NULL,
    CONSTRAINT lessor_id_check CHECK ((id = 1))
)
WITH (fillfactor='10');
CREATE TABLE keelson.log (
    seq bigint NOT NULL,
    "position" bigint NOT NULL,
    revision bigint NOT NULL,
    batch bytea,
    header bytea NOT NULL,
    key bytea,
    value bytea
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.1', toast.autovacuum_vacuum_scale_factor='0.05');
CREATE VIEW keelson.live AS
 SELECT encode(log.key, 'escape'::text) AS key,
    log.revision,
    log.value
   FROM keelson.log
  WHERE ((log.seq IN ( SELECT max(log_1.seq) AS max
           FROM keelson.log log_1
          WHERE (log_1.key IS NOT NULL)
          GROUP BY log_1.key)) AND (log.value IS NOT NULL))
  ORDER BY log.key;
CREATE TABLE keelson.reader (
    instance text NOT NULL,
    seq bigint NOT NULL,
    at timestamp with time zone NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE keelson.renewal (
    lease bigint NOT NULL,
    until timestamp with time zone NOT NULL,
    expired boolean NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE keelson.version (
    id integer NOT NULL,
    version integer NOT NULL,
    CONSTRAINT version_id_check CHECK ((id = 1))
);
INSERT INTO keelson.head VALUES (1, 18, 19, 17, '\x97044f95b31c65dc872089e004208017', 2392, 1, 1);
INSERT INTO keelson.kept VALUES (1, 6, 6, 768);
INSERT INTO keelson.lessor VALUES (1, 'F4DXQ64NZXR764KMRTV4CWLQCM', '2026-11-21 13:30:20.608474+00');
INSERT INTO keelson.log VALUES (7, 7, 8, '\x784c867354fe8469b27d163bc21f435a65c2d992', '\x01010e100004060000000007f819321df789c5f8', '\x6b65792f30', '\x76616c75652032');
INSERT INTO keelson.log VALUES (8, 8, 9, '\xe1e3c93a755ec0baf1fa2b52680d235d921bb302', '\x010110120006060000000007f819321d71fd51b8', '\x6b65792f31', '\x76616c75652032');
INSERT INTO keelson.log VALUES (9, 9, 10, '\x2e9316c9368274f56b14f4e60b7301d3e16debe5', '\x010112140008060000000007f819321dc44141fc', '\x6b65792f32', '\x76616c75652032');
INSERT INTO keelson.log VALUES (10, 10, 11, '\x10d49f86c9ff71dcccc53d6182e34f56c729eb4c', '\x0101141600040800000000070a72b11e9cde70e8', '\x6b65792f30', '\x76616c75652033');
INSERT INTO keelson.log VALUES (11, 11, 12, '\x1fb2cf1201ac5d2ea4d66c9bbfbddb9e7cc4d4d5', '\x0101161800060800000000070a72b11efcf082cf', '\x6b65792f31', '\x76616c75652033');
INSERT INTO keelson.log VALUES (12, 12, 13, '\x75e00a504ba6651eb3b23724d5c8baff443990dc', '\x0101181a00080800000000070a72b11e8dca9f1d', '\x6b65792f32', '\x76616c75652033');
INSERT INTO keelson.log VALUES (13, 13, 0, '\x9defbad2c3e21412fb678f1f36e236f68674d00f', '\x01031a000000000ea03800000000000000f035224c', NULL, NULL);
INSERT INTO keelson.log VALUES (14, 14, 14, '\xfd1ae90260490c496bf49907832ae045f73df8ba', '\x01011c1c001c020e000000000000000090dbf5c8', '\x6c6561736564', '\x');
INSERT INTO keelson.log VALUES (15, 15, 15, '\x72c2d0c85659578d497cc95cc41d3b7d0bfeba9b', '\x01011e1e001e0200000000025c1c2483d0c73c4f', '\x706169722f6c656674', '\x00ff');
INSERT INTO keelson.log VALUES (16, 15, 15, NULL, '\x01011e1e021e02000000000000000000088372d4', '\x706169722f7269676874', '\x');
INSERT INTO keelson.log VALUES (17, 16, 16, '\x2c3bf2c3277b300a921a62ad54b8331e87062351', '\x01022020000000000000000000000000d672a626', '\x6b65792f32', NULL);
INSERT INTO keelson.log VALUES (18, 17, 10, '\x827aaba760df89a112910a939e7a0523c88ab0da', '\x010522140000000000000000000000001577ea6e', NULL, NULL);
INSERT INTO keelson.log VALUES (19, 18, 17, '\x97044f95b31c65dc872089e004208017c340d8a0', '\x0101242200040a00000000068ded009c9f309040', '\x6b65792f30', '\x6e6577657374');
INSERT INTO keelson.reader VALUES ('F4DXQ64NZXR764KMRTV4CWLQCM', 0, '2026-11-21 13:30:05.594099+00');
INSERT INTO keelson.version VALUES (1, 1);
ALTER TABLE ONLY keelson.head
    ADD CONSTRAINT head_pkey PRIMARY KEY (id);
ALTER TABLE ONLY keelson.kept
    ADD CONSTRAINT kept_pkey PRIMARY KEY (id);
ALTER TABLE ONLY keelson.lessor
    ADD CONSTRAINT lessor_pkey PRIMARY KEY (id);
ALTER TABLE ONLY keelson.log
    ADD CONSTRAINT log_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY keelson.reader
    ADD CONSTRAINT reader_pkey PRIMARY KEY (instance);
ALTER TABLE ONLY keelson.renewal
    ADD CONSTRAINT renewal_pkey PRIMARY KEY (lease);
ALTER TABLE ONLY keelson.version
    ADD CONSTRAINT version_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX log_position ON keelson.log USING btree ("position") WHERE (batch IS NOT NULL);
